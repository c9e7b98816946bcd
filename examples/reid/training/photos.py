"""Which photos a training has seen, with their pixels: a line for each, in a file of its folder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from data.market import Photo

SEEN = "data.sha256"
DIGITS = 16  # of the hash of a file: one in 10^9 data sets of a million photos has two alike


def list_photos(photos: Sequence[Photo]) -> str:
    """The lines: start of the hash of the file, person, name."""
    lines = []
    for photo in photos:
        content = hashlib.sha256(photo.path.read_bytes()).hexdigest()[:DIGITS]
        lines.append(f"{content} {photo.person} {photo.path.name}\n")
    return "".join(lines)


def read_seen(out: Path) -> str:
    """Those of an earlier training.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is of an older version.
    """
    path = out / SEEN
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing, which tells whether {out} was trained on these photos; put it "
            "back, or use another folder"
        )
    seen = path.read_text()
    if " " not in seen:
        raise ValueError(
            f"{path} is of an older version, which did not look at pixels; use another folder"
        )
    return seen


def check_same_photos(out: Path, now: str) -> None:
    """Against those of an earlier training.

    Raises:
        FileNotFoundError: nobody knows what they were.
        ValueError: they were others, or nobody looked at their pixels.
    """
    before = read_seen(out)
    if before != now:
        other = sorted(set(before.splitlines()) ^ set(now.splitlines()), key=lambda x: x[::-1])
        names = list(dict.fromkeys(line.split()[-1] for line in other)) or ["their order"]
        raise ValueError(
            f"{out} was trained on other photos than these {now.count(chr(10))} (names, people or "
            f"pixels differ: {', '.join(names[:3])}{', ...' if names[3:] else ''}); use its data, "
            "or another folder"
        )


def saw_these(out: Path, photos: Sequence[Photo]) -> bool:
    """Whether these photos to train on are of the data of an earlier training; one tells."""
    return bool(photos) and list_photos(photos[:1]).strip() in read_seen(out).splitlines()


def people_of(seen: str) -> list[int]:
    """In the order of the classifier."""
    return sorted({int(line.split()[1]) for line in seen.splitlines()})


def same_people(before: str, now: str) -> dict[int, int]:
    """Person now -> person before, where they share a photo: numbers alone say nothing."""
    known = {line.split()[0]: int(line.split()[1]) for line in before.splitlines()}
    pairs = [line.split()[:2] for line in now.splitlines()]
    return {int(person): known[content] for content, person in pairs if content in known}
