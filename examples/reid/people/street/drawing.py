"""Draws a person of the street: body, clothes and pose, from back to front."""

from __future__ import annotations

import math
from dataclasses import dataclass

from PIL import Image
from people.street.bags import draw_backpack, draw_carried, draw_worn_in_front
from people.street.brush import SHADE, Brush, Frame, Point, Row, edges, outline, toned
from people.street.head import draw_head, draw_scarf
from people.street.identities import Person

SHOULDER, WAIST, HIP, KNEE, ANKLE, SOLE = 1.5, 2.9, 3.7, 5.5, 7.1, 7.4  # heads below the top
EASE = {"puffer": 0.13, "coat": 0.08, "jacket": 0.06, "hoodie": 0.06, "blazer": 0.04}
HEMS = {"sweater": 3.7, "shirt": 3.85, "blazer": 4.1, "coat": 5.1}  # others: 3.75
HEM = {"short": -0.2, "usual": 0.0, "long": 0.28}
SHINE = {"matte": 0.0, "soft": 0.5, "shiny": 1.0}
TROUSERS = {"slim": (0.33, 0.23, 0.15), "straight": (0.34, 0.26, 0.2), "wide": (0.36, 0.33, 0.31)}
BARE = 0.3, 0.2, 0.11
SKIRTS = {"short": 4.7, "knee": 5.5, "long": 6.7}


@dataclass(frozen=True)
class Pose:
    """How a person is seen in one photo."""

    view: str  # "front", "back" or "side"
    facing: int  # in a side view: -1 to the left of the picture, 1 to the right
    phase: float  # of a step, 0 to 2 pi
    stride: float  # largest angle of the legs
    arms: str  # of `shares.PHOTO`
    turn: float  # from straight ahead, in a view from the front or the back, as an angle


class Figure:
    """One person on one picture."""

    def __init__(
        self, picture: Image.Image, person: Person, pose: Pose, frame: Frame, light: float
    ) -> None:
        self.brush, self.person, self.pose = Brush(picture, frame, light), person, pose
        self.is_side, self.is_back = pose.view == "side", pose.view == "back"
        # Where the person's left is in the picture, 0 where it is behind or in front.
        self.left = {"front": 1, "back": -1, "side": 0}[pose.view]
        self.bag_side = 1 if person.is_a("bag side", "left") else -1
        narrow = math.cos(pose.turn)
        self.shoulders, self.hips = person.shoulders * narrow, person.hips * narrow
        self.swing = math.sin(pose.phase) * pose.stride
        self.ease = EASE.get(person.looks["top"], 0.0)
        self.hem = HEMS.get(person.looks["top"], 3.75) + HEM[person.looks["hem"]]
        self.rows = self._rows()
        is_busy = person.is_a("bag", "hand", "carrier")  # the hands hang down
        self.arms_are = "hanging" if is_busy else pose.arms
        self.legs = [self._leg(side) for side in (-1, 1)]
        self.arms = [self._arm(side) for side in (-1, 1)]

    def draw(self) -> None:
        """From back to front."""
        is_phone = self.arms_are == "phone"
        if self.is_side:
            self._draw_arm(self.arms[0], 0.85)
        if self.is_back and is_phone:
            self._draw_arm(self.arms[1])
        if not self.is_back:
            draw_backpack(self)
        self._legs()
        self._top()
        draw_scarf(self)
        if self.is_back:
            draw_head(self)
        draw_worn_in_front(self)
        for side in (0, 1):
            is_drawn = side == 0 if self.is_side else self.is_back and is_phone and side == 1
            if not is_drawn:
                self._draw_arm(self.arms[side])
        if self.is_back:
            draw_backpack(self)
        else:
            draw_head(self)
        draw_carried(self)

    # Where things are

    def y(self, height: float) -> float:
        """Of a height at the legs, which are longer or shorter."""
        return HIP + (height - HIP) * self.person.legs

    def _rows(self) -> list[Row]:
        """Of the trunk with its top."""
        person, ease, hem = self.person, self.ease, self.y(self.hem)
        flare = 0.12 * max(0.0, hem - 4)
        if self.is_side:
            front, back = person.depth + ease, person.depth * 0.9 + ease
            belly = 1.12 if person.is_a("build", "heavy") else 0.88
            rows = [(1.04, 0.17, 0.2), (1.35, 0.38, 0.38), (2.05, front, back)]
            rows += [(WAIST, front * belly, back * 0.85), (hem, front * 0.95 + flare, back + flare)]
            f = self.pose.facing
            return [(y, *sorted((ahead * f, -behind * f))) for y, ahead, behind in rows]
        s, h = self.shoulders + ease, self.hips + ease
        waist = (0.46 if person.is_a("sex", "man") else 0.4) * (s + h)
        if person.is_a("top", "coat", "hoodie", "puffer", "jacket"):
            waist = max(waist, 0.47 * (s + h))
        halves = [(1.02, 0.2), (1.17, 0.42), (1.33, s * 0.8), (1.52, s * 0.96), (2.05, s * 0.9)]
        halves += [(WAIST, waist), (hem, h * 1.03 + flare)]
        return [(y, -half, half) for y, half in halves]

    def _leg(self, side: int) -> list[Point]:
        x = side * self.hips * 0.52
        if not self.is_side:
            lift = 0.3 * max(0.0, side * self.swing)  # the leg behind looks shorter
            knee, ankle = self.y(KNEE) - 0.3 * lift, self.y(ANKLE) - lift
            return [(x, HIP - 0.1), (x * 1.06, knee), (x * 1.12, ankle)]
        angle, bend = side * self.swing, 0.15 + 0.6 * max(0.0, -side * self.swing)
        start = (0.0, HIP - 0.1)
        knee = self._turned(start, angle, self.y(KNEE) - start[1])
        return [start, knee, self._turned(knee, angle - bend, self.y(ANKLE) - self.y(KNEE))]

    def _arm(self, side: int) -> list[Point]:
        is_phone = self.arms_are == "phone" and side == 1
        if self.is_side:
            start = (-0.05 * self.pose.facing, SHOULDER + 0.05)
            angle = 0.15 if is_phone else -side * self.swing * 0.75
            elbow = self._turned(start, angle, 1.3)
            fold = {"phone": 2.2, "pocket": 0.5}.get(self.arms_are, 0.25) if side == 1 else 0.25
            return [start, elbow, self._turned(elbow, angle + fold, 1.1)]
        x = side * (self.shoulders + self.ease - 0.17)
        if is_phone:
            return [(x, SHOULDER), (x + side * 0.16, 2.9), (side * 0.3, 2.2)]
        if self.arms_are == "pocket":
            hip = side * (self.hips + 0.05)
            return [(x, SHOULDER), (x + side * 0.3, 2.85), (hip, 3.7)]
        reach = 0.12 * side * self.swing
        return [(x, SHOULDER), (x + side * 0.14, 2.9), (x + side * 0.14, 3.95 - reach)]

    def _turned(self, start: Point, angle: float, length: float) -> Point:
        shift = math.sin(angle) * length * self.pose.facing
        return start[0] + shift, start[1] + math.cos(angle) * length

    # Legs

    def _legs(self) -> None:
        person, colour = self.person, self.person.colours["leg color"]
        for number in (0, 1):
            tone = 0.82 if self.is_side and number == 0 else 1.0
            self._draw_leg(self.legs[number], tone)
        if person.is_a("legwear", "skirt", "dress"):
            self._skirt()
        elif not self.is_side:
            h = self.hips
            self.brush.trunk([(3.2, -h, h), (3.7, -1.03 * h, 1.03 * h), (4.0, -h, h)], colour)
            dark = toned(colour, 0.65)
            self.brush.line([(0, 4.0), (0, self.y(5.2))], 0.05, dark)

    def _draw_leg(self, leg: list[Point], tone: float) -> None:
        person = self.person
        wide = person.hips / 0.64
        skin, cloth = (toned(person.colours[part], tone) for part in ("skin", "leg color"))
        if not person.is_a("legwear", "trousers", "jeans"):
            self.brush.limb(leg, [r * wide for r in BARE], skin)
            self._shoe(leg, tone)
            if person.is_a("legwear", "shorts"):
                hem = between(leg[0], leg[1], 0.85)
                self.brush.limb([leg[0], hem], [0.34 * wide, 0.32 * wide], cloth)
            return
        end, radii = leg[2], [r * wide for r in TROUSERS[person.looks["cut"]]]
        if person.is_a("cuffs", "ankle"):
            self.brush.limb(leg[1:], [0.18, 0.12], skin)
            end = between(leg[1], leg[2], 0.8)
        self._shoe(leg, tone)
        self.brush.limb([leg[0], leg[1], end], radii, cloth)

    def _shoe(self, leg: list[Point], tone: float) -> None:
        person, brush, (x, y) = self.person, self.brush, leg[2]
        colour = toned(person.colours["shoes"], tone)
        if person.is_a("shoes", "boots"):
            brush.limb([between(leg[1], leg[2], 0.45), leg[2]], [0.2, 0.17], colour)
        sole = toned((200, 198, 192), tone) if person.is_a("shoes", "sneakers") else (22, 20, 20)
        bottom = y + SOLE - ANKLE
        if self.is_side:
            f = self.pose.facing
            heel, toe = x - 0.16 * f, x + 0.46 * f
            brush.flat([(heel, y), (x + 0.14 * f, y), (toe, bottom - 0.13), (toe, bottom), (heel, bottom)], colour)
            brush.line([(heel, bottom), (toe, bottom)], 0.06, sole)
        else:
            brush.oval(x, y + 0.14, 0.17, 0.2, colour)
            brush.line([(x - 0.15, bottom), (x + 0.15, bottom)], 0.06, sole)

    def _skirt(self) -> None:
        person = self.person
        bottom = self.y(SKIRTS[person.looks["length"]])
        wide = person.depth if self.is_side else self.hips
        flare = wide * (1.12 + 0.1 * (bottom - HIP))
        rows = [(2.9, -0.85 * wide, 0.85 * wide), (HIP, -1.05 * wide, 1.05 * wide), (bottom, -flare, flare)]
        self.brush.trunk(rows, person.colours["leg color"])
        fold = toned(person.colours["leg color"], 0.82)
        for share in (-0.4, 0.25):
            self.brush.line([(share * wide, 4.0), (share * flare, bottom - 0.05)], 0.05, fold)

    # Above the legs

    def _top(self) -> None:
        person, colour = self.person, self.person.colours["top color"]
        self.brush.trunk(self.rows, colour, SHINE[person.looks["sheen"]])
        getattr(self, f"_{person.looks.get('print', 'plain')}")()
        if person.is_a("front", "open"):
            self._open_front()
        elif not self.is_back and not self.is_side:
            self._closed_front()
        if person.is_a("top", "puffer"):
            self._across([y / 100 for y in range(195, int(self.hem * 100), 38)], 0.05, toned(colour, 0.62))
        if person.is_a("top", "hoodie"):
            hood = 1.3 if self.is_back else 1.14
            shift = -0.2 * self.pose.facing if self.is_side else 0
            self.brush.oval(shift, hood, 0.4, 0.26, toned(colour, 0.9))
        self._across([self.rows[-1][0] - 0.04], 0.05, toned(colour, 0.6))

    def _plain(self) -> None:
        """A crease at the waist."""
        colour = toned(self.person.colours["top color"], 0.87)
        left, right = edges(self.rows, 3.0)
        self.brush.line([(left, 2.95), (left + 0.45 * (right - left), 3.08)], 0.05, colour)

    def _logo(self) -> None:
        if not self.is_side:
            y, width = (2.0, 0.3) if self.is_back else (2.15, 0.24)
            colour = self.person.colours["print color"]
            self.brush.flat([(-width, y), (width, y), (width, y + 0.34), (-width, y + 0.34)], colour)

    def _hoops(self) -> None:
        ys = [1.9 + 0.3 * i for i in range(int((self.hem - 1.9) / 0.3))]
        self._across(ys, 0.11, self.person.colours["print color"])

    def _plaid(self) -> None:
        colour = _mixed(self.person.colours["print color"], self.person.colours["top color"])
        self._across([1.9, 2.4, 2.9, 3.4], 0.1, colour)
        for share in (0.2, 0.5, 0.8):
            ends = []
            for y in (1.7, self.rows[-1][0]):
                left, right = edges(self.rows, y)
                ends.append((left + share * (right - left), y))
            self.brush.line(ends, 0.09, colour)

    def _splice(self) -> None:
        rows = [row for row in self.rows if row[0] < 2.2] + [(2.3, *edges(self.rows, 2.3))]
        self.brush.trunk(rows, self.person.colours["print color"])

    def _across(self, ys: list[float], width: float, colour: tuple[int, int, int]) -> None:
        for y in ys:
            left, right = edges(self.rows, y)
            self.brush.line([(left, y), (right, y)], width, colour)

    def _open_front(self) -> None:
        if self.is_back:
            return
        person, f = self.person, self.pose.facing
        bottom = min(self.rows[-1][0], 3.75)
        if self.is_side:
            ahead = [edges(self.rows, y)[f > 0] for y in (1.5, 2.3, bottom)]
            rows = [(y, *sorted((x, x - 0.22 * f))) for x, y in zip(ahead, (1.5, 2.3, bottom), strict=True)]
        else:
            rows = [(1.08, -0.16, 0.16), (2.2, -0.2, 0.2), (bottom, -0.27, 0.27)]
        self.brush.flat(outline(rows), person.colours["inner color"])
        if not self.is_side and self.rows[-1][0] > bottom + 0.2:
            low = self.rows[-1][0]
            gap = [(bottom, -0.27, 0.27), (low, -0.36, 0.36)]
            self.brush.flat(outline(gap), toned(person.colours["leg color"], SHADE))

    def _closed_front(self) -> None:
        person, colour = self.person, self.person.colours["top color"]
        if person.is_a("top", "T-shirt", "sweater"):
            self.brush.oval(0, 1.1, 0.2, 0.14, toned(person.colours["skin"], 0.9))
            return
        if person.is_a("top", "blazer", "shirt"):
            inner = (214, 212, 208) if person.is_a("top", "blazer") else person.colours["skin"]
            depth = 2.3 if person.is_a("top", "blazer") else 1.6
            self.brush.flat([(-0.17, 1.04), (0.17, 1.04), (0, depth)], inner)
        self.brush.line([(0, 1.3), (0, self.rows[-1][0])], 0.05, toned(colour, 0.7))

    def _draw_arm(self, arm: list[Point], tone: float = 1.0) -> None:
        person, (start, elbow, wrist) = self.person, arm
        skin, cloth = (toned(person.colours[part], tone) for part in ("skin", "top color"))
        wide = 0.9 if person.is_a("sex", "woman") else 1.0
        if not (self.arms_are == "pocket" and not self.is_side):
            self.brush.limb([wrist, between(elbow, wrist, 1.14)], [0.1, 0.1], skin)
        if person.is_a("sleeves", "short"):
            self.brush.limb(arm, [0.17 * wide, 0.14 * wide, 0.1], skin)
            self.brush.limb([start, between(start, elbow, 0.6)], [0.17 * wide, 0.2 * wide], cloth)
            return
        loose = wide * (1 + 1.6 * self.ease)
        cuff = between(elbow, wrist, 0.94)
        self.brush.limb([start, elbow, cuff], [0.17 * loose, 0.18 * loose, 0.14 * loose], cloth)


def between(start: Point, end: Point, share: float) -> Point:
    """On the line through both; beyond the end for more than 1."""
    return start[0] + (end[0] - start[0]) * share, start[1] + (end[1] - start[1]) * share


def _mixed(first: tuple[int, int, int], second: tuple[int, int, int]) -> tuple[int, int, int]:
    return tuple((a + b) // 2 for a, b in zip(first, second, strict=True))
