"""Draws a person of the street, from back to front."""

from __future__ import annotations

from people.street.bags import draw_backpack, draw_carried, draw_worn_in_front
from people.street.body import Body
from people.street.clothes import draw_arm, draw_top
from people.street.head import draw_head, draw_scarf
from people.street.legs import draw_legs


def draw(body: Body) -> None:
    """From back to front."""
    is_phone = body.arms_are == "phone"
    if body.is_side:
        draw_arm(body, 0, 0.85)
    if body.is_back and is_phone:
        draw_arm(body, 1)
    if not body.is_back:
        draw_backpack(body)
    draw_legs(body)
    draw_top(body)
    draw_scarf(body)
    if body.is_back:
        draw_head(body)
    draw_worn_in_front(body)
    for side in (0, 1):
        is_drawn = side == 0 if body.is_side else body.is_back and is_phone and side == 1
        if not is_drawn:
            draw_arm(body, side)
    if body.is_back:
        draw_backpack(body)
    else:
        draw_head(body)
    draw_carried(body)
