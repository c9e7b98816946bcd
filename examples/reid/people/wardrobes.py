"""Which people can be drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numpy.random import Generator
from PIL import Image

from people.street import cameras as street_cameras
from people.street import identities as street_people
from people.toy import cameras as toy_cameras
from people.toy import identities as toy_people


@dataclass(frozen=True)
class Wardrobe:
    """People and cameras, the same for the same seed, and the photos of them."""

    draw_people: Callable[[int, int], list[Any]]  # of a count and a seed
    draw_cameras: Callable[[int, int], list[Any]]
    # Of a person and a camera: the photo, and the view, "front", "side" or "back"
    photograph: Callable[[Any, Any, Generator], tuple[Image.Image, str]]
    photograph_nobody: Callable[[Any, Generator], Image.Image]


def _of(people: Any, cameras: Any) -> Wardrobe:
    return Wardrobe(
        people.draw_people, cameras.draw_cameras, cameras.photograph, cameras.photograph_nobody
    )


WARDROBES = {
    "street": _of(street_people, street_cameras),
    "toy": _of(toy_people, toy_cameras),
}
