"""What a person in the street carries, seen from each side."""

from __future__ import annotations

from people.street.body import Body
from people.street.brush import toned


def draw_backpack(body: Body) -> None:
    """On the back; nothing of it in front but the straps (`draw_worn_in_front`)."""
    person, brush = body.person, body.brush
    if not person.is_a("bag", "backpack"):
        return
    color = person.colors["bag color"]
    if body.is_back:
        wide = 0.62
        brush.trunk(
            [(1.4, -0.4, 0.4), (1.65, -wide, wide), (3.05, -wide, wide), (3.2, -0.5, 0.5)], color
        )
        pocket = toned(color, 1.22)
        brush.trunk([(2.45, -0.42, 0.42), (3.0, -0.42, 0.42)], pocket)
        brush.line([(-0.5, 2.0), (0.5, 2.0)], 0.04, toned(color, 0.6))
    elif body.is_side:
        x = -body.pose.facing * (person.depth + body.ease + 0.18)
        brush.oval(x, 2.35, 0.36, 0.85, color)


def draw_worn_in_front(body: Body) -> None:
    """Straps over the clothes, below the arms."""
    person, brush = body.person, body.brush
    if person.is_a("bag", "backpack") and not body.is_back:
        color = toned(person.colors["bag color"], 0.9)
        for side in (-1, 1) if not body.is_side else (0,):
            x = side * 0.5 * body.shoulders + 0.12 * body.pose.facing * body.is_side
            brush.line([(x, 1.22), (x + 0.06 * side, 2.7)], 0.12, color)
    if person.is_a("bag", "shoulder") and not body.is_side:
        side = body.bag_side * body.left
        s, h = body.shoulders, body.hips
        brush.line(
            [(-side * s * 0.6, 1.24), (side * (h + 0.05), 3.5)], 0.08, person.colors["bag color"]
        )


def draw_carried(body: Body) -> None:
    """At the side or in the hand; what is on the far side is not seen."""
    person, brush = body.person, body.brush
    if not person.is_a("bag", "shoulder", "hand", "carrier"):
        return
    is_near = body.bag_side == -body.pose.facing  # who walks to the right shows the right side
    if body.is_side and not is_near:
        return
    side = body.bag_side * body.left
    color = person.colors["bag color"]
    if person.is_a("bag", "shoulder"):
        x = side * (body.hips + 0.2) if side else -0.1 * body.pose.facing
        brush.trunk([(3.15, x - 0.36, x + 0.36), (4.0, x - 0.4, x + 0.4)], color)
        brush.line([(x - 0.36, 3.42), (x + 0.36, 3.42)], 0.04, toned(color, 0.6))
        return
    hand = body.arms[1 if side > 0 or body.is_side else 0][2]
    if person.is_a("bag", "hand"):
        width, high = 0.4, 0.58
    else:
        width, high = 0.36, 0.85
    x, y = hand[0], hand[1] + 0.12
    brush.line([(x - 0.2, y + 0.3), (x, y), (x + 0.2, y + 0.3)], 0.06, toned(color, 0.7))
    brush.trunk(
        [(y + 0.28, x - width * 0.85, x + width * 0.85), (y + 0.28 + high, x - width, x + width)],
        color,
    )
