"""Who the people in the street are: what stays the same in all photos of a person.

Words say what a person looks like (`shares.PERSON`); numbers make two navy jackets two jackets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from people.street.shares import COLORS, HAIR, PERSON, SHOES, SKIN, choose

Color = tuple[int, int, int]

BUILD = {"slim": 0.9, "average": 1.0, "heavy": 1.18}  # widths
PALETTES = {"skin": SKIN, "hair": HAIR, "shoes": SHOES}
DYED = 0.14, 3  # standard deviations of a garment: of its lightness, as a share; of each channel


@dataclass(frozen=True)
class Person:
    """What identifies a person; lengths in heads."""

    looks: Mapping[str, str]  # of `shares.PERSON`: choice -> word
    colors: Mapping[str, Color]  # by the choice that has a color
    shoulders: float  # half the width
    hips: float  # half the width
    depth: float  # half the thickness of the trunk, from the side
    legs: float  # length over that of the average

    def is_a(self, choice: str, *words: str) -> bool:
        """Whether the person has one of the words."""
        return self.looks.get(choice) in words


def draw_people(count: int, seed: int) -> list[Person]:
    """The same people for the same seed, however many are asked for; no two look alike."""
    people: list[Person] = []
    known = set()
    for number in range(count):
        rng = np.random.default_rng([seed, 7, number])
        person = draw_person(rng)
        while (looks := tuple(person.looks.items())) in known:
            person = draw_person(rng)
        known.add(looks)
        people.append(person)
    return people


def draw_person(rng: np.random.Generator) -> Person:
    """Anybody."""
    looks = choose(PERSON, rng)
    broad = BUILD[looks["build"]] * rng.uniform(0.95, 1.05)
    is_man = looks["sex"] == "man"
    return Person(
        looks=looks,
        colors=_colors(looks, rng),
        shoulders=(0.92 if is_man else 0.8) * broad,
        hips=(0.62 if is_man else 0.66) * broad,
        depth=0.55 * broad**1.3,
        legs=rng.uniform(0.95, 1.05),
    )


def _colors(looks: Mapping[str, str], rng: np.random.Generator) -> dict[str, Color]:
    colors = {}
    for choice, word in looks.items():
        palette = PALETTES.get(choice, COLORS if choice.endswith("color") else None)
        if palette is not None:
            colors[choice] = _dyed(palette[word], rng)
    if "leg color" not in colors:  # a dress
        colors["leg color"] = colors["top color"]
    return colors


def _dyed(color: Color, rng: np.random.Generator) -> Color:
    light, each = DYED
    factor = np.exp(rng.normal(0, light))
    dyed = np.array(color) * factor + rng.normal(0, each, 3)
    return tuple(np.clip(dyed, 4, 245).astype(int).tolist())
