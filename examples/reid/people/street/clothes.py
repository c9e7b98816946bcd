"""What a person in the street wears above the legs."""

from __future__ import annotations

from people.street.body import Body, between
from people.street.brush import SHADE, edges, outline, toned
from people.street.identities import Color

SHINE = {"matte": 0.0, "soft": 0.5, "shiny": 1.0}


def draw_top(body: Body) -> None:
    """What is worn above the legs, without the sleeves."""
    person, color = body.person, body.person.colors["top color"]
    body.brush.trunk(body.rows, color, SHINE[person.looks["sheen"]])
    PRINTS[person.looks.get("print", "plain")](body)
    if person.is_a("front", "open"):
        _open_front(body)
    elif not body.is_back and not body.is_side:
        _closed_front(body)
    if person.is_a("top", "puffer"):
        seams = [y / 100 for y in range(195, int(body.hem * 100), 38)]
        _across(body, seams, 0.05, toned(color, 0.62))
    if person.is_a("top", "hoodie"):
        hood = 1.3 if body.is_back else 1.14
        shift = -0.2 * body.pose.facing if body.is_side else 0
        body.brush.oval(shift, hood, 0.4, 0.26, toned(color, 0.9))
    _across(body, [body.rows[-1][0] - 0.04], 0.05, toned(color, 0.6))


def _plain(body: Body) -> None:
    """A crease at the waist."""
    color = toned(body.person.colors["top color"], 0.87)
    left, right = edges(body.rows, 3.0)
    body.brush.line([(left, 2.95), (left + 0.45 * (right - left), 3.08)], 0.05, color)


def _logo(body: Body) -> None:
    if not body.is_side:
        y, width = (2.0, 0.3) if body.is_back else (2.15, 0.24)
        color = body.person.colors["print color"]
        body.brush.flat([(-width, y), (width, y), (width, y + 0.34), (-width, y + 0.34)], color)


def _hoops(body: Body) -> None:
    ys = [1.9 + 0.3 * i for i in range(int((body.hem - 1.9) / 0.3))]
    _across(body, ys, 0.11, body.person.colors["print color"])


def _plaid(body: Body) -> None:
    color = _mixed(body.person.colors["print color"], body.person.colors["top color"])
    _across(body, [1.9, 2.4, 2.9, 3.4], 0.1, color)
    for share in (0.2, 0.5, 0.8):
        ends = []
        for y in (1.7, body.rows[-1][0]):
            left, right = edges(body.rows, y)
            ends.append((left + share * (right - left), y))
        body.brush.line(ends, 0.09, color)


def _splice(body: Body) -> None:
    rows = [row for row in body.rows if row[0] < 2.2] + [(2.3, *edges(body.rows, 2.3))]
    body.brush.trunk(rows, body.person.colors["print color"])


def _across(body: Body, ys: list[float], width: float, color: tuple[int, int, int]) -> None:
    for y in ys:
        left, right = edges(body.rows, y)
        body.brush.line([(left, y), (right, y)], width, color)


def _open_front(body: Body) -> None:
    if body.is_back:
        return
    person, f = body.person, body.pose.facing
    bottom = min(body.rows[-1][0], 3.75)
    if body.is_side:
        ahead = [edges(body.rows, y)[f > 0] for y in (1.5, 2.3, bottom)]
        rows = [
            (y, *sorted((x, x - 0.22 * f))) for x, y in zip(ahead, (1.5, 2.3, bottom), strict=True)
        ]
    else:
        rows = [(1.08, -0.16, 0.16), (2.2, -0.2, 0.2), (bottom, -0.27, 0.27)]
    body.brush.flat(outline(rows), person.colors["inner color"])
    if not body.is_side and body.rows[-1][0] > bottom + 0.2:
        low = body.rows[-1][0]
        gap = [(bottom, -0.27, 0.27), (low, -0.36, 0.36)]
        body.brush.flat(outline(gap), toned(person.colors["leg color"], SHADE))


def _closed_front(body: Body) -> None:
    person, color = body.person, body.person.colors["top color"]
    if person.is_a("top", "T-shirt", "sweater"):
        body.brush.oval(0, 1.1, 0.2, 0.14, toned(person.colors["skin"], 0.9))
        return
    if person.is_a("top", "blazer", "shirt"):
        inner = (214, 212, 208) if person.is_a("top", "blazer") else person.colors["skin"]
        depth = 2.3 if person.is_a("top", "blazer") else 1.6
        body.brush.flat([(-0.17, 1.04), (0.17, 1.04), (0, depth)], inner)
    body.brush.line([(0, 1.3), (0, body.rows[-1][0])], 0.05, toned(color, 0.7))


def draw_arm(body: Body, number: int, tone: float = 1.0) -> None:
    """With its sleeve and its hand."""
    person, arm = body.person, body.arms[number]
    start, elbow, wrist = arm
    skin, cloth = (toned(person.colors[part], tone) for part in ("skin", "top color"))
    wide = 0.9 if person.is_a("sex", "woman") else 1.0
    if not (body.arms_are == "pocket" and not body.is_side):
        body.brush.limb([wrist, between(elbow, wrist, 1.14)], [0.1, 0.1], skin)
    if person.is_a("sleeves", "short"):
        body.brush.limb(arm, [0.17 * wide, 0.14 * wide, 0.1], skin)
        body.brush.limb([start, between(start, elbow, 0.6)], [0.17 * wide, 0.2 * wide], cloth)
        return
    loose = wide * (1 + 1.6 * body.ease)
    cuff = between(elbow, wrist, 0.94)
    body.brush.limb([start, elbow, cuff], [0.17 * loose, 0.18 * loose, 0.14 * loose], cloth)


def _mixed(first: Color, second: Color) -> Color:
    return tuple((a + b) // 2 for a, b in zip(first, second, strict=True))


PRINTS = {"plain": _plain, "logo": _logo, "hoops": _hoops, "plaid": _plaid, "splice": _splice}
