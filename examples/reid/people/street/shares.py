"""How often each choice is made: for people, and for photos of them.

Of the sources the first three count photos of real people; their shares are those of the training
photos as `main.py` of Tang et al. 2019 (arXiv 1910.04562, github chufengt/ALM-pedestrian-attribute)
lists them. Where they differ, the share here lies between them. "By eye": no count was found.

- PA: PA-100K, Liu et al. 2017, arXiv 1709.09930
- PETA: Deng et al. 2014, Pedestrian attribute recognition at far distance
- RAP: Li et al. 2016, arXiv 1603.07054
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

BY_EYE = "by eye"


@dataclass(frozen=True)
class Choice:
    """The share of each word; `of`: a choice before, and its words that lead to this one."""

    name: str
    shares: Mapping[str, float]
    source: str
    of: tuple[str, tuple[str, ...]] | None = None
    limits: tuple[float, ...] = field(init=False, repr=False)  # the sums of shares

    def __post_init__(self) -> None:
        """Sums the shares."""
        object.__setattr__(self, "limits", tuple(itertools.accumulate(self.shares.values())))
        if abs(self.limits[-1] - 1) > 1e-9:
            raise ValueError(f"the shares of {self.name} must add up to 1, got {self.limits[-1]}")

    def applies(self, words: Mapping[str, str]) -> bool:
        """To somebody with these words."""
        return self.of is None or words.get(self.of[0]) in self.of[1]

    def word(self, draw: float) -> str:
        """Of a number in [0, 1)."""
        for word, limit in zip(self.shares, self.limits, strict=True):
            if draw < limit:
                return word
        return word  # the last one, where a sum of shares is just below 1


def choose(choices: tuple[Choice, ...], rng: np.random.Generator) -> dict[str, str]:
    """A word for each choice, in order; later choices may depend on earlier ones."""
    words: dict[str, str] = {}
    for choice, draw in zip(choices, rng.random(len(choices)).tolist(), strict=True):
        if choice.applies(words):
            words[choice.name] = choice.word(draw)
    return words


OPEN = "jacket", "blazer", "coat"  # tops that are worn open or closed
PRINTED = "T-shirt", "shirt", "sweater", "hoodie"

PERSON = (
    Choice("sex", {"woman": 0.46, "man": 0.54}, "PA .460, PETA .453, RAP .311 women"),
    Choice(
        "build",
        {"slim": 0.15, "average": 0.7, "heavy": 0.15},
        "RAP: thin .098, normal .742, fat .145",
    ),
    Choice("skin", {"light": 0.5, "tan": 0.27, "brown": 0.13, "dark": 0.1}, BY_EYE),
    Choice(
        "hair",
        {"black": 0.48, "dark brown": 0.25, "brown": 0.12, "blond": 0.07, "gray": 0.08},
        "by eye; RAP has .945 black, of one shopping mall",
    ),
    Choice(
        "haircut",
        {"long": 0.3, "tail": 0.18, "bun": 0.09, "bob": 0.29, "short": 0.14},
        "long hair, all people: PETA .235, RAP .189; here .23",
        of=("sex", ("woman",)),
    ),
    Choice(
        "haircut",
        {"short": 0.64, "cropped": 0.25, "bald": 0.06, "bob": 0.03, "long": 0.02},
        "by eye; RAP has .004 bald",
        of=("sex", ("man",)),
    ),
    Choice(
        "hat", {"none": 0.93, "cap": 0.04, "beanie": 0.03}, "hats: PETA .101, PA .044, RAP .017"
    ),
    Choice(
        "hat color",
        {"black": 0.45, "navy": 0.2, "gray": 0.2, "beige": 0.15},
        BY_EYE,
        of=("hat", ("cap", "beanie")),
    ),
    Choice(
        "top",
        {
            "T-shirt": 0.18,
            "shirt": 0.17,
            "sweater": 0.14,
            "hoodie": 0.11,
            "jacket": 0.24,
            "blazer": 0.05,
            "puffer": 0.06,
            "coat": 0.05,
        },
        "RAP: shirt .221, sweater .123, T-shirt .229, cotton .173, jacket .315, suit .022; "
        "PA: long coat .032",
    ),
    Choice("sleeves", {"short": 0.92, "long": 0.08}, "see shirts", of=("top", ("T-shirt",))),
    Choice(
        "sleeves",
        {"short": 0.4, "long": 0.6},
        "short sleeves, all people: PETA .143, PA .583, RAP .018; here .23",
        of=("top", ("shirt",)),
    ),
    Choice(
        "top color",
        {
            "black": 0.26,
            "dark gray": 0.13,
            "gray": 0.11,
            "navy": 0.14,
            "white": 0.12,
            "beige": 0.05,
            "brown": 0.04,
            "blue": 0.05,
            "olive": 0.04,
            "red": 0.02,
            "burgundy": 0.02,
            "pink": 0.01,
            "mustard": 0.01,
        },
        BY_EYE,
    ),
    Choice("hem", {"short": 0.2, "usual": 0.6, "long": 0.2}, BY_EYE),
    Choice("sheen", {"matte": 0.7, "soft": 0.2, "shiny": 0.1}, BY_EYE),
    Choice(
        "print",
        {"plain": 0.66, "logo": 0.15, "hoops": 0.07, "plaid": 0.07, "splice": 0.05},
        "all people: PA logo .151, plaid .108, stripes .049, splice .042; PETA .040, .028, .018",
        of=("top", PRINTED),
    ),
    Choice(
        "print color",
        {"white": 0.4, "black": 0.2, "gray": 0.2, "navy": 0.1, "red": 0.1},
        BY_EYE,
        of=("print", ("logo", "hoops", "plaid", "splice")),
    ),
    Choice("front", {"open": 0.45, "closed": 0.55}, BY_EYE, of=("top", OPEN)),
    Choice(
        "inner color",
        {"white": 0.35, "gray": 0.2, "black": 0.2, "blue": 0.1, "beige": 0.1, "burgundy": 0.05},
        BY_EYE,
        of=("front", ("open",)),
    ),
    Choice("scarf", {"none": 0.95, "scarf": 0.05}, "PETA .085, RAP .010"),
    Choice(
        "scarf color",
        {"gray": 0.4, "beige": 0.2, "navy": 0.2, "burgundy": 0.2},
        BY_EYE,
        of=("scarf", ("scarf",)),
    ),
    Choice(
        "legwear",
        {"trousers": 0.38, "jeans": 0.36, "shorts": 0.09, "skirt": 0.11, "dress": 0.06},
        "all people: jeans PETA .314, RAP .268; skirts and dresses PA .115, PETA .045, RAP .065",
        of=("sex", ("woman",)),
    ),
    Choice(
        "legwear",
        {"trousers": 0.52, "jeans": 0.36, "shorts": 0.12},
        "all people: trousers PETA .513, RAP .560; shorts PA .173, PETA .036",
        of=("sex", ("man",)),
    ),
    Choice(
        "cut",
        {"slim": 0.3, "straight": 0.5, "wide": 0.2},
        "by eye; RAP has .133 tight trousers",
        of=("legwear", ("trousers", "jeans")),
    ),
    Choice("cuffs", {"full": 0.75, "ankle": 0.25}, BY_EYE, of=("legwear", ("trousers", "jeans"))),
    Choice(
        "length", {"short": 0.45, "knee": 0.35, "long": 0.2}, BY_EYE, of=("legwear", ("skirt",))
    ),
    Choice("length", {"short": 0.3, "knee": 0.5, "long": 0.2}, BY_EYE, of=("legwear", ("dress",))),
    Choice(
        "leg color",
        {"denim": 0.4, "dark denim": 0.35, "light denim": 0.12, "black": 0.13},
        BY_EYE,
        of=("legwear", ("jeans",)),
    ),
    Choice(
        "leg color",
        {
            "black": 0.38,
            "navy": 0.16,
            "dark gray": 0.16,
            "gray": 0.08,
            "beige": 0.12,
            "brown": 0.03,
            "olive": 0.04,
            "white": 0.03,
        },
        BY_EYE,
        of=("legwear", ("trousers", "shorts", "skirt")),
    ),
    Choice(
        "shoes",
        {"leather": 0.34, "sneakers": 0.32, "white": 0.18, "boots": 0.12, "sandals": 0.04},
        "RAP: leather .302, sport .271, boots .124; PETA: leather .293, sneaker .220, sandals .019",
    ),
    Choice(
        "bag",
        {"none": 0.43, "backpack": 0.18, "shoulder": 0.2, "hand": 0.11, "carrier": 0.08},
        "PETA: none .272, backpack .199, messenger .297, plastic .075; PA: backpack .160, "
        "shoulder .193, hand .185; RAP: backpack .018, shoulder .064, hand .028",
    ),
    Choice(
        "bag color",
        {"black": 0.5, "brown": 0.17, "navy": 0.1, "gray": 0.11, "beige": 0.08, "red": 0.04},
        BY_EYE,
        of=("bag", ("backpack", "shoulder", "hand")),
    ),
    Choice(
        "bag color", {"white": 0.6, "beige": 0.25, "gray": 0.15}, BY_EYE, of=("bag", ("carrier",))
    ),
    Choice(
        "bag side", {"left": 0.5, "right": 0.5}, BY_EYE, of=("bag", ("shoulder", "hand", "carrier"))
    ),
)

PHOTO = (
    Choice("view", {"front": 0.35, "back": 0.35, "side": 0.3}, "PA: .353, .353, .295"),
    Choice("facing", {"left": 0.5, "right": 0.5}, BY_EYE),
    Choice("arms", {"hanging": 0.7, "pocket": 0.17, "phone": 0.13}, BY_EYE),
    Choice("figure", {"whole": 0.88, "partial": 0.12}, BY_EYE),
    Choice(
        "before",
        {"nothing": 0.8, "person": 0.1, "low": 0.06, "post": 0.04},
        "what occludes; by eye",
    ),
    Choice("behind", {"nobody": 0.75, "person": 0.25}, BY_EYE),
    Choice("covered", {"left": 0.5, "right": 0.5}, "the side of what occludes; by eye"),
)

COLORS = {
    "black": (28, 28, 31),
    "dark gray": (62, 63, 67),
    "gray": (124, 125, 128),
    "navy": (36, 41, 60),
    "white": (222, 221, 216),
    "beige": (178, 161, 134),
    "brown": (92, 68, 50),
    "blue": (80, 102, 140),
    "olive": (82, 84, 62),
    "red": (152, 44, 44),
    "burgundy": (92, 36, 46),
    "pink": (202, 154, 162),
    "mustard": (180, 138, 62),
    "denim": (78, 92, 116),
    "dark denim": (46, 52, 68),
    "light denim": (134, 148, 168),
}
SKIN = {
    "light": (224, 184, 160),
    "tan": (196, 148, 116),
    "brown": (142, 98, 72),
    "dark": (86, 60, 48),
}
HAIR = {
    "black": (24, 22, 22),
    "dark brown": (50, 37, 30),
    "brown": (92, 66, 46),
    "blond": (172, 142, 96),
    "gray": (142, 140, 138),
}
SHOES = {
    "leather": (34, 28, 26),
    "sneakers": (64, 64, 70),
    "white": (214, 213, 208),
    "boots": (52, 40, 33),
    "sandals": (92, 66, 48),
}
