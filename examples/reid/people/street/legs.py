"""Legs of a person in the street, what is on them, and shoes."""

from __future__ import annotations

from people.street.body import ANKLE, HIP, SOLE, Body, between
from people.street.brush import Point, toned

TROUSERS = {"slim": (0.33, 0.23, 0.15), "straight": (0.34, 0.26, 0.2), "wide": (0.36, 0.33, 0.31)}
BARE = 0.3, 0.2, 0.11
SKIRTS = {"short": 4.7, "knee": 5.5, "long": 6.7}


def draw_legs(body: Body) -> None:
    """With trousers, skirt and shoes."""
    person, color = body.person, body.person.colors["leg color"]
    for number in (0, 1):
        tone = 0.82 if body.is_side and number == 0 else 1.0
        _draw_leg(body, body.legs[number], tone)
    if person.is_a("legwear", "skirt", "dress"):
        _skirt(body)
    elif not body.is_side:
        h = body.hips
        body.brush.trunk([(3.2, -h, h), (3.7, -1.03 * h, 1.03 * h), (4.0, -h, h)], color)
        dark = toned(color, 0.65)
        body.brush.line([(0, 4.0), (0, body.y(5.2))], 0.05, dark)


def _draw_leg(body: Body, leg: list[Point], tone: float) -> None:
    person = body.person
    wide = person.hips / 0.64
    skin, cloth = (toned(person.colors[part], tone) for part in ("skin", "leg color"))
    if not person.is_a("legwear", "trousers", "jeans"):
        body.brush.limb(leg, [r * wide for r in BARE], skin)
        _shoe(body, leg, tone)
        if person.is_a("legwear", "shorts"):
            hem = between(leg[0], leg[1], 0.85)
            body.brush.limb([leg[0], hem], [0.34 * wide, 0.32 * wide], cloth)
        return
    end, radii = leg[2], [r * wide for r in TROUSERS[person.looks["cut"]]]
    if person.is_a("cuffs", "ankle"):
        body.brush.limb(leg[1:], [0.18, 0.12], skin)
        end = between(leg[1], leg[2], 0.8)
    _shoe(body, leg, tone)
    body.brush.limb([leg[0], leg[1], end], radii, cloth)


def _shoe(body: Body, leg: list[Point], tone: float) -> None:
    person, brush, (x, y) = body.person, body.brush, leg[2]
    color = toned(person.colors["shoes"], tone)
    if person.is_a("shoes", "boots"):
        brush.limb([between(leg[1], leg[2], 0.45), leg[2]], [0.2, 0.17], color)
    sole = toned((200, 198, 192), tone) if person.is_a("shoes", "sneakers") else (22, 20, 20)
    bottom = y + SOLE - ANKLE
    if body.is_side:
        f = body.pose.facing
        heel, toe = x - 0.16 * f, x + 0.46 * f
        brush.flat(
            [(heel, y), (x + 0.14 * f, y), (toe, bottom - 0.13), (toe, bottom), (heel, bottom)],
            color,
        )
        brush.line([(heel, bottom), (toe, bottom)], 0.06, sole)
    else:
        brush.oval(x, y + 0.14, 0.17, 0.2, color)
        brush.line([(x - 0.15, bottom), (x + 0.15, bottom)], 0.06, sole)


def _skirt(body: Body) -> None:
    person = body.person
    bottom = body.y(SKIRTS[person.looks["length"]])
    wide = person.depth if body.is_side else body.hips
    flare = wide * (1.12 + 0.1 * (bottom - HIP))
    rows = [
        (2.9, -0.85 * wide, 0.85 * wide),
        (HIP, -1.05 * wide, 1.05 * wide),
        (bottom, -flare, flare),
    ]
    body.brush.trunk(rows, person.colors["leg color"])
    fold = toned(person.colors["leg color"], 0.82)
    for share in (-0.4, 0.25):
        body.brush.line([(share * wide, 4.0), (share * flare, bottom - 0.05)], 0.05, fold)
