"""Who the synthetic pedestrians are: what stays the same in all photos of a person.

People come in groups. All members of a group wear the same colors, each of them at other parts of
the body, so that a color histogram cannot tell them apart: one has to know where a color is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Color = tuple[int, int, int]

GROUP = 4  # people who share their colors
CLOTHES: tuple[Color, ...] = (
    (190, 40, 45),
    (35, 75, 165),
    (40, 120, 60),
    (225, 190, 50),
    (235, 235, 235),
    (35, 35, 40),
    (120, 120, 125),
    (130, 80, 50),
    (110, 50, 130),
    (235, 130, 45),
    (60, 170, 190),
    (240, 160, 180),
)
SKIN: tuple[Color, ...] = ((245, 210, 180), (220, 170, 130), (160, 110, 75), (95, 65, 45))
HAIR: tuple[Color, ...] = ((30, 25, 25), (90, 60, 35), (200, 165, 95), (140, 140, 140))
HAIRCUTS = ("short", "long", "bald", "cap")
PATTERNS = ("plain", "plain", "hoops", "stripes", "checks", "yoke", "sash", "dots")
LEGWEAR = ("trousers", "trousers", "shorts", "skirt")
LEG_PATTERNS = ("plain", "plain", "seams", "knees", "cuffs")
BAGS = ("none", "none", "backpack", "shoulder", "hand")
MARKED = ("arm", "chest", "belly", "thigh", "shin")


@dataclass(frozen=True)
class Mark:
    """A patch of color on the clothes."""

    part: str
    side: int  # -1: the person's right, 1: left
    color: Color


@dataclass(frozen=True)
class Person:
    """What identifies a person; lengths in heads."""

    shoulders: float  # half the width
    hips: float  # half the width
    legs: float  # length over that of the average
    skin: Color
    hair: Color
    haircut: str
    upper: Color
    second: Color  # of the pattern
    pattern: str
    has_long_sleeves: bool
    legwear: str
    lower: Color
    leg_pattern: str
    shoes: Color
    bag: str
    bag_color: Color
    bag_side: int
    marks: tuple[Mark, ...]


def draw_people(count: int, seed: int) -> list[Person]:
    """The same people for the same seed, however many are asked for."""
    return [_person(number, seed) for number in range(count)]


def _person(number: int, seed: int) -> Person:
    group, member = divmod(number, GROUP)
    shared = np.random.default_rng([seed, 1, group])
    own = np.random.default_rng([seed, 2, number])
    colors = [CLOTHES[i] for i in shared.choice(len(CLOTHES), 5, replace=False)]
    skin, hair = SKIN[shared.integers(len(SKIN))], HAIR[shared.integers(len(HAIR))]
    # Each member has another color above and another one below the belt.
    upper, lower, second, small, mark = (colors[i] for i in _arrangement(member, own))
    return Person(
        shoulders=own.uniform(0.85, 1.15),
        hips=own.uniform(0.6, 0.85),
        legs=own.uniform(0.92, 1.08),
        skin=skin,
        hair=hair,
        haircut=_one_of(HAIRCUTS, own),
        upper=upper,
        second=second,
        pattern=_one_of(PATTERNS, own),
        has_long_sleeves=bool(own.random() < 0.6),
        legwear=_one_of(LEGWEAR, own),
        lower=lower,
        leg_pattern=_one_of(LEG_PATTERNS, own),
        shoes=small,
        bag=_one_of(BAGS, own),
        bag_color=small,
        bag_side=int(own.choice((-1, 1))),
        marks=_marks(mark, own),
    )


def _arrangement(member: int, own: np.random.Generator) -> list[int]:
    first = [member, (member + 1 + own.integers(3)) % GROUP]
    rest = [i for i in range(5) if i not in first]
    return first + list(own.permutation(rest))


def _marks(color: Color, own: np.random.Generator) -> tuple[Mark, ...]:
    parts = own.choice(MARKED, 2, replace=False)
    return tuple(Mark(str(part), int(own.choice((-1, 1))), color) for part in parts)


def _one_of(options: tuple[str, ...], own: np.random.Generator) -> str:
    return options[own.integers(len(options))]
