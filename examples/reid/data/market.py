"""Photos of person re-identification data sets: who is on them, and which camera took them."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

DISTRACTOR = 0  # Market-1501's person 0000: in the gallery, and nobody asks for them
NO_VIEW = -1  # nobody says from which side a person is seen
VIEWS = "views.csv"  # of a data set, if somebody does: photo,view and one line for each photo
JUNK = -1  # Market-1501's crops without a person: dropped on reading

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png"}


@dataclass(frozen=True)
class Photo:
    """One photo of a person."""

    path: Path
    person: int
    camera: int
    view: int = NO_VIEW


@dataclass(frozen=True)
class Splits:
    """The photos to train on, those to search for, and those to search in."""

    train: tuple[Photo, ...]
    query: tuple[Photo, ...]
    gallery: tuple[Photo, ...]


@dataclass(frozen=True)
class Source:
    """Where a split is: in the first of `folders` that exists, all of it or what `lists` name."""

    folders: tuple[str, ...]
    lists: tuple[str, ...] = ()


@dataclass(frozen=True)
class Kind:
    """A data set: how its names start, with an example, and where its splits are.

    `pattern` has the group `camera`, and `person` unless lists tell the person.
    """

    pattern: str
    example: str
    train: Source
    query: Source
    gallery: Source
    distractor: int | None = None


_FOLDERS = {
    "train": Source(("bounding_box_train",)),
    "query": Source(("query",)),
    "gallery": Source(("bounding_box_test",)),
}
_DUKE = Kind(r"(?P<person>\d+)_c(?P<camera>\d+)_f\d+", "0001_c2_f0046182.jpg", **_FOLDERS)
_MSMT17_TEST = ("test", "mask_test_v2")

KINDS = {
    "market1501": Kind(
        r"(?P<person>-1|\d+)_c(?P<camera>\d+)s\d+_",
        "0002_c1s1_000451_03.jpg",
        distractor=DISTRACTOR,
        **_FOLDERS,
    ),
    "dukemtmc": _DUKE,
    "occluded_duke": _DUKE,
    "msmt17": Kind(
        r"\d+_\d+_(?P<camera>\d+)_",
        "0000_000_01_0303morning_0015_0.jpg",
        train=Source(("train", "mask_train_v2"), ("list_train.txt", "list_val.txt")),
        query=Source(_MSMT17_TEST, ("list_query.txt",)),
        gallery=Source(_MSMT17_TEST, ("list_gallery.txt",)),
    ),
}


def read_dataset(root: Path, kind: str = "market1501", *, needs_train: bool = True) -> Splits:
    """Read which photos a data set has, in the order of their paths.

    | kind | where | person, camera |
    |---|---|---|
    | `market1501` | `bounding_box_train`, `query`, `bounding_box_test` | `0002_c1s1_...`: 2, 1 |
    | `dukemtmc`, `occluded_duke` | the same folders | `0001_c2_f...`: 1, 2 |
    | `msmt17` | `list_*.txt` of `train`, `test` | the list's number, `0000_000_01_...`: 1 |

    The training photos of MSMT17 are those of its training and its validation list, as published
    results have it. Its person 0 is a person; only Market-1501 has distractors (`DISTRACTOR`) and
    junk. From which side a person is seen (`Photo.view`) is read from `views.csv` in `root`, where
    there is one. Files that are no images are ignored. No photo is opened.

    Args:
        root: the folder with the folders and lists above.
        kind: a name from `KINDS`.
        needs_train: else the photos to train on may be missing, as an empty tuple.

    Raises:
        ValueError: `kind` is unknown, a split is empty, a name or a line of a list or of
            `views.csv` does not fit, or a distractor is outside the gallery.
        FileNotFoundError: a folder, a list or a photo of a list is missing.

    Reference: Zheng et al. 2015, Scalable person re-identification (Market-1501); Ristani et al.
        2016, arXiv 1609.01775 (DukeMTMC); Miao et al. 2019, Pose-guided feature alignment
        (Occluded-Duke); Wei et al. 2018, arXiv 1711.08565 (MSMT17).
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    described = KINDS[kind]
    train: tuple[Photo, ...] = ()
    if needs_train or _is_there(Path(root), described.train):
        train = _read_split(Path(root), described, described.train)
    query = _read_split(Path(root), described, described.query)
    _refuse_distractors(train + query, described)
    gallery = _read_split(Path(root), described, described.gallery)
    views = _read_views(Path(root) / VIEWS)
    return Splits(*(_with_views(photos, views) for photos in (train, query, gallery)))


def _read_views(path: Path) -> dict[str, int]:
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        try:
            views = {row["photo"]: int(row["view"]) for row in csv.DictReader(file)}
        except (KeyError, TypeError, ValueError):
            views = {"": NO_VIEW}
    if min(views.values(), default=0) < 0:
        raise ValueError(
            f"{path} must begin with photo,view and have a name and a whole number from 0 a line, "
            "such as 0002_c1s1_000451_03.jpg,0"
        )
    return views


def _with_views(photos: tuple[Photo, ...], views: dict[str, int]) -> tuple[Photo, ...]:
    return tuple(replace(one, view=views.get(one.path.name, NO_VIEW)) for one in photos)


def _is_there(root: Path, source: Source) -> bool:
    has_folder = any((root / name).is_dir() for name in source.folders)
    return has_folder and all((root / name).is_file() for name in source.lists)


def _read_split(root: Path, kind: Kind, source: Source) -> tuple[Photo, ...]:
    folder = _existing_folder(root, source.folders)
    named = _listed(root, folder, source.lists) if source.lists else _all_images(folder)
    photos = (_photo(path, person, kind) for path, person in named)
    kept = sorted((p for p in photos if p.person != JUNK), key=lambda photo: photo.path)
    if not kept:
        where = f"{', '.join(source.lists)} in {root}" if source.lists else folder
        raise ValueError(
            f"a split needs at least one photo (junk does not count), such as {kind.example}; "
            f"{where} has none; found in {folder}: {_contents(folder)}"
        )
    return tuple(kept)


def _all_images(folder: Path) -> Iterator[tuple[Path, None]]:
    for path in folder.iterdir():
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."):
            yield path, None


def _listed(root: Path, folder: Path, lists: tuple[str, ...]) -> Iterator[tuple[Path, int]]:
    for name in lists:
        if not (root / name).is_file():
            raise _missing("list", (name,), root)
        for number, line in enumerate((root / name).read_text().splitlines(), 1):
            if line.strip():
                yield _listed_photo(folder, line, f"line {number} of {root / name}")


def _listed_photo(folder: Path, line: str, place: str) -> tuple[Path, int]:
    fields = line.split()
    if len(fields) != 2 or not fields[1].isdecimal():
        raise ValueError(
            f"a line must be a path and a person's number, such as '0000/name.jpg 0'; "
            f"{place} is {line!r}"
        )
    path = folder / fields[0]
    if not path.is_file():
        beside = path.parent if path.parent.is_dir() else folder
        raise FileNotFoundError(
            f"{place} names {path}, which is missing; found in {beside}: {_contents(beside)}"
        )
    return path, int(fields[1])


def _photo(path: Path, person: int | None, kind: Kind) -> Photo:
    match = re.match(kind.pattern, path.name)
    if match is None:
        raise ValueError(
            f"the name of a photo must start like {kind.example} (pattern {kind.pattern}); got "
            f"{path}; is it of another kind ({', '.join(KINDS)})? Move other images elsewhere"
        )
    return Photo(path, int(match["person"]) if person is None else person, int(match["camera"]))


def _refuse_distractors(photos: tuple[Photo, ...], kind: Kind) -> None:
    for photo in photos:
        if photo.person == kind.distractor:
            raise ValueError(
                f"person {photo.person} stands for people nobody asks for and belongs into "
                f"{kind.gallery.folders[0]} only; got {photo.path}; remove it"
            )


def _existing_folder(root: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise _missing("folder", names, root)


def _missing(what: str, names: tuple[str, ...], root: Path) -> FileNotFoundError:
    expected = " or ".join(names)
    if not root.is_dir():
        return FileNotFoundError(
            f"the {what} {expected} was expected in {root}, which is no folder; found in "
            f"{root.parent}: {_contents(root.parent)}"
        )
    nested = [path for name in names for path in sorted(root.glob(f"*/{name}"))]
    advice = f"; pass {nested[0].parent}, which has {nested[0].name}" if nested else ""
    return FileNotFoundError(
        f"the {what} {expected} was expected in {root}; found there: {_contents(root)}{advice}"
    )


def _contents(folder: Path, shown: int = 8) -> str:
    """The first names in a folder, for messages."""
    if not folder.is_dir():
        return "no such folder"
    names = sorted(path.name for path in folder.iterdir())
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return (", ".join(names[:shown]) or "nothing") + more
