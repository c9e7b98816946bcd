"""Head, hair, hat and scarf of a person in the street."""

from __future__ import annotations

import math

from people.street.body import Body
from people.street.brush import toned
from people.street.identities import Color


def draw_head(body: Body) -> None:
    """With hair and hat; over the neck."""
    person, brush = body.person, body.brush
    f = body.pose.facing if body.is_side else 0
    skin, hair, cut = person.colors["skin"], person.colors["hair"], person.looks["haircut"]
    if cut == "cropped":
        hair = tuple((2 * h + s) // 3 for h, s in zip(hair, skin, strict=True))
    if cut == "bald":
        hair = skin
    if not body.is_back:
        _behind(body, cut, hair, f)
    brush.limb([(0.02 * f, 0.85), (-0.03 * f, 1.08)], [0.17, 0.18], toned(skin, 0.82))
    is_hairy = body.is_back or cut in ("long", "bob")
    brush.oval(
        -0.05 * f, 0.45 if is_hairy else 0.38, 0.38 if f else 0.36, 0.45 if is_hairy else 0.38, hair
    )
    if not body.is_back:
        _face(body, cut, skin, f)
    else:
        _behind(body, cut, hair, f)
    _hat(body, f)


def _face(body: Body, cut: str, skin: Color, f: int) -> None:
    brush = body.brush
    x = 0.11 * f if f else 0.2 * math.sin(body.pose.turn)
    high = {"bald": 0.48, "cropped": 0.52}.get(cut, 0.57)  # the hairline
    wide = 0.27 if cut in ("long", "bob") else 0.31
    brush.oval(x, high, wide, 0.95 - high, skin)
    dark = toned(skin, 0.55)
    eyes = [(0.2 * f, 0.3 * f)] if f else [(x - 0.18, x - 0.07), (x + 0.07, x + 0.18)]
    for left, right in eyes:
        brush.line([(left, 0.55), (right, 0.55)], 0.07, dark)
    brush.line([(x + 0.07 * f - 0.07, 0.8), (x + 0.07 * f + 0.07, 0.8)], 0.04, toned(skin, 0.65))


def _behind(body: Body, cut: str, hair: Color, f: int) -> None:
    """What hangs from the head."""
    brush = body.brush
    if cut == "long":
        brush.limb([(-0.14 * f, 0.5), (-0.2 * f, 1.35), (-0.22 * f, 1.8)], [0.37, 0.36, 0.22], hair)
    elif cut == "bob":
        brush.limb([(-0.08 * f, 0.5), (-0.1 * f, 0.92)], [0.4, 0.36], hair)
    elif cut == "tail" and (f or body.is_back):
        x = -0.42 * f
        brush.limb([(0.8 * x, 0.4), (x, 0.7), (1.1 * x, 1.5)], [0.12, 0.15, 0.07], hair)
    elif cut == "bun":
        brush.oval(-0.36 * f, 0.2 if f else 0.02, 0.17, 0.16, hair)


def _hat(body: Body, f: int) -> None:
    person, brush = body.person, body.brush
    if person.is_a("hat", "none"):
        return
    color = person.colors["hat color"]
    is_cap = person.is_a("hat", "cap")
    brush.oval(-0.04 * f, 0.26, 0.39, 0.28 if is_cap else 0.33, color)
    if is_cap and not body.is_back:
        x = 0.36 * f
        brush.flat(
            [(x - 0.3, 0.38), (x + 0.3, 0.38), (x + 0.26, 0.48), (x - 0.26, 0.48)],
            toned(color, 0.7),
        )


def draw_scarf(body: Body) -> None:
    """Around the neck, with an end in front."""
    if body.person.is_a("scarf", "none"):
        return
    brush, color = body.brush, body.person.colors["scarf color"]
    brush.oval(0, 1.1, 0.34, 0.2, color)
    if not body.is_back:
        x = 0.2 * body.pose.facing if body.is_side else 0.14
        brush.limb([(x, 1.3), (x, 2.2)], [0.13, 0.15], color)
