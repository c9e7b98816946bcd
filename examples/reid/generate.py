"""Draws a data set of synthetic pedestrians and writes it as the folders of Market-1501.

    python examples/reid/generate.py demo/pedestrians

The people of the test are others than those of the training. `--wardrobe street` (the default) has
people, cameras and places as in a street; `toy` has bright colors, which four people each share.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

try:
    import numpy as np
    from data.market import VIEWS
    from options import Parser, add_fields, check_fields, command, option, read_fields
    from people.toy.identities import GROUP
    from people.wardrobes import WARDROBES
    from PIL import Image
    from tqdm import tqdm
except ModuleNotFoundError as missing:
    raise SystemExit(f'{missing}: pip install ".[reid]"') from None

TRAIN, QUERY, GALLERY = "bounding_box_train", "query", "bounding_box_test"
RECIPE = "recipe.json"
SHEET = 8  # people on it
SEEN_FROM = "front", "side", "back"  # by their numbers in `VIEWS`


class Drawn(NamedTuple):
    """A photo with its path, the quality of its JPEG, and the view of who is on it."""

    path: str
    photo: Image.Image
    quality: int
    view: str = ""  # nobody is on it


@dataclass(frozen=True)
class Recipe:
    """The same data for the same numbers."""

    train_people: int = option(320, "to train on")
    test_people: int = option(80, "to search for, other ones")
    cameras: int = option(6, "that take photos")
    photos: int = option(12, "of each person")
    distractors: int = option(80, "in the gallery: people nobody asks for", least=0)
    junk: int = option(20, "in the gallery: not to be counted", least=0)
    seed: int = option(0, "of everything random", least=0)
    wardrobe: str = option("street", "what people wear, and where", choices=tuple(WARDROBES))

    def __post_init__(self) -> None:
        """Checks what would make data without a question."""
        check_fields(self)
        for name in ("train_people", "test_people"):
            number = getattr(self, name)
            if number < GROUP or number % GROUP:
                raise ValueError(f"{name} must be a multiple of {GROUP}, got {number}")
        if not 2 <= self.cameras <= 9:  # one digit in the file names
            raise ValueError(f"cameras must be 2 to 9, got {self.cameras}")
        if self.photos <= self.cameras:  # the first by each camera is a query
            raise ValueError(
                f"photos must be more than one for each of {self.cameras} cameras, so that the "
                f"gallery has some of them, got {self.photos}"
            )


def main() -> None:
    """Writes what the options ask for."""
    parser = Parser(__doc__)
    parser.add_argument("out", type=Path, help="folder of the data set")
    parser.add_argument("--sheet", type=Path, help="a picture of some people to write besides")
    add_fields(parser, Recipe)
    args = parser.parse_args()
    write(args.out, read_fields(Recipe, args))
    print(f"written: {args.out}")
    if args.sheet:
        draw_sheet(args.out).save(args.sheet)
        print(f"written: {args.sheet}")


def write(out: Path, recipe: Recipe) -> None:
    """Into `out`; nothing is done where the same data are already there.

    Raises:
        ValueError: `out` holds something else.
    """
    note = out / RECIPE
    if note.is_file() and _is_of(note, recipe):
        return
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty and not these data ({RECIPE}); use another folder")
    for folder in (TRAIN, QUERY, GALLERY):
        (out / folder).mkdir(parents=True, exist_ok=True)
    total = (recipe.train_people + recipe.test_people) * recipe.photos
    total += recipe.distractors + recipe.junk
    views = [("photo", "view")]
    for one in tqdm(drawn_photos(recipe), total=total, unit="photo", desc="drawing"):
        one.photo.save(out / one.path, quality=one.quality)
        if one.view:
            views.append((Path(one.path).name, SEEN_FROM.index(one.view)))
    with (out / VIEWS).open("w", newline="") as file:
        csv.writer(file).writerows(views)
    note.write_text(json.dumps(asdict(recipe)) + "\n")  # last: says that all is there


def draw_sheet(out: Path) -> Image.Image:
    """The first people to train on, each in a row of photos as they are."""
    rows = [sorted((out / TRAIN).glob(f"{number:04d}_*")) for number in range(1, SHEET + 1)]
    rows = [sorted(row, key=lambda path: path.name.split("_")[2]) for row in rows if row]
    opened = [[Image.open(path) for path in row] for row in rows]
    (width, height), gap = opened[0][0].size, 4
    size = max(map(len, rows)) * (width + gap) - gap, len(rows) * (height + gap) - gap
    sheet = Image.new("RGB", size, "white")
    for y, row in enumerate(opened):
        for x, photo in enumerate(row):
            sheet.paste(photo, (x * (width + gap), y * (height + gap)))
    return sheet


def _is_of(note: Path, recipe: Recipe) -> bool:
    """Notes without a wardrobe are of the time when there was only one."""
    return {"wardrobe": "toy", **json.loads(note.read_text())} == asdict(recipe)


def drawn_photos(recipe: Recipe) -> Iterator[Drawn]:
    """All of a data set, in order."""
    drawn = WARDROBES[recipe.wardrobe]
    cameras = drawn.draw_cameras(recipe.cameras, recipe.seed)
    count = recipe.train_people + recipe.test_people
    for number, person in enumerate(drawn.draw_people(count, recipe.seed), start=1):
        is_train = number <= recipe.train_people
        seen = set()
        for photo in range(recipe.photos):
            camera = (number + photo) % recipe.cameras
            folder = TRAIN if is_train else GALLERY if camera in seen else QUERY
            seen.add(camera)
            rng = np.random.default_rng([recipe.seed, 4, number, photo])
            picture, view = drawn.photograph(person, cameras[camera], rng)
            path = _path(folder, number, camera, photo)
            yield Drawn(path, picture, cameras[camera].quality, view)
    yield from _strangers(recipe, cameras, count)
    yield from _junk(recipe, cameras)


def _strangers(recipe: Recipe, cameras: list[Any], known: int) -> Iterator[Drawn]:
    drawn = WARDROBES[recipe.wardrobe]
    everyone = drawn.draw_people(known + recipe.distractors, recipe.seed)
    for number, person in enumerate(everyone[known:]):
        camera = number % recipe.cameras
        rng = np.random.default_rng([recipe.seed, 5, number])
        picture, view = drawn.photograph(person, cameras[camera], rng)
        yield Drawn(_path(GALLERY, 0, camera, number), picture, cameras[camera].quality, view)


def _junk(recipe: Recipe, cameras: list[Any]) -> Iterator[Drawn]:
    for number in range(recipe.junk):
        camera = number % recipe.cameras
        rng = np.random.default_rng([recipe.seed, 6, number])
        picture = WARDROBES[recipe.wardrobe].photograph_nobody(cameras[camera], rng)
        yield Drawn(_path(GALLERY, -1, camera, number), picture, cameras[camera].quality)


def _path(folder: str, person: int, camera: int, photo: int) -> str:
    name = "-1" if person < 0 else f"{person:04d}"
    return f"{folder}/{name}_c{camera + 1}s1_{photo:06d}_00.jpg"


if __name__ == "__main__":
    command(main, "the folder is not complete: remove it")
