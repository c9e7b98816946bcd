"""Draws a person as a figure eight heads tall: view, pose, clothes and all that is carried."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from PIL import Image, ImageDraw

from people.toy.identities import Color, Mark, Person

Point = tuple[float, float]

SHOULDER, WAIST, CROTCH, KNEE, ANKLE = 1.35, 3.0, 3.9, 5.8, 7.6  # heads below the top
ARM, LEG = 0.19, 0.27  # half the thickness, in heads


@dataclass(frozen=True)
class Stance:
    """How a person is seen in one photo."""

    view: str  # "front", "back" or "side"
    facing: int  # in a side view: -1 to the left of the picture, 1 to the right
    phase: float  # of a step, 0 to 2 pi
    stride: float  # largest angle of the legs


@dataclass(frozen=True)
class Frame:
    """Where the figure is in the picture, in pixels."""

    center: float
    top: float
    head: float  # height of a head

    def at(self, x: float, y: float) -> Point:
        """Of a point in heads."""
        return self.center + x * self.head, self.top + y * self.head


class Figure:
    """One person on one picture."""

    def __init__(self, picture: Image.Image, person: Person, stance: Stance, frame: Frame) -> None:
        self.picture, self.pen = picture, ImageDraw.Draw(picture)
        self.person, self.stance, self.frame = person, stance, frame
        self.is_side = stance.view == "side"
        # Where the person's left is in the picture, 0 where it is behind or in front.
        self.left = {"front": 1, "back": -1, "side": 0}[stance.view]
        self.near = -stance.facing  # who walks to the right shows the right side, -1
        narrow = 0.62 if self.is_side else 1.0
        self.shoulders, self.hips = person.shoulders * narrow, person.hips * narrow
        swing = math.sin(stance.phase) * stance.stride
        self.legs = [self._leg(side, swing) for side in (-1, 1)]
        self.arms = [self._arm(side, swing) for side in (-1, 1)]

    def draw(self) -> None:
        """From back to front."""
        if self.person.bag == "backpack" and self.is_side:
            self._backpack()
        if self.is_side:
            self._draw_arm(self.arms[0])
        for leg in self.legs:
            self._draw_leg(leg)
        self._torso()
        if self.person.legwear == "skirt":
            self._skirt()
        self._head()
        for arm in self.arms[1:] if self.is_side else self.arms:
            self._draw_arm(arm)
        for mark in self.person.marks:
            self._mark(mark)
        if self.person.bag == "backpack" and not self.is_side:
            self._backpack()
        self._carried()

    # Limbs: [joint, middle, end]

    def _leg(self, side: int, swing: float) -> list[Point]:
        x = side * self.hips * 0.55
        if not self.is_side:
            lift = 0.35 * max(0.0, side * swing)  # the leg behind looks shorter
            return [(x, CROTCH - 0.1), (x * 1.05, self._y(KNEE)), (x * 1.1, self._y(ANKLE) - lift)]
        angle, bend = side * swing, 0.5 * max(0.0, -side * swing)
        knee = self._turned((0.0, CROTCH - 0.1), angle, self._y(KNEE) - CROTCH + 0.1)
        ankle = self._turned(knee, angle - bend, self._y(ANKLE) - self._y(KNEE))
        return [(0.0, CROTCH - 0.1), knee, ankle]

    def _arm(self, side: int, swing: float) -> list[Point]:
        x = side * (self.shoulders - ARM)
        if not self.is_side:
            elbow = x + side * 0.22, SHOULDER + 1.35
            return [(x, SHOULDER), elbow, (elbow[0] + side * 0.05, elbow[1] + 1.15 - 0.3 * swing)]
        elbow = self._turned((0.0, SHOULDER), -side * swing * 0.8, 1.35)
        return [(0.0, SHOULDER), elbow, self._turned(elbow, -side * swing * 0.8 + 0.25, 1.15)]

    def _turned(self, start: Point, angle: float, length: float) -> Point:
        shift = math.sin(angle) * length * self.stance.facing
        return start[0] + shift, start[1] + math.cos(angle) * length

    def _y(self, height: float) -> float:
        return CROTCH + (height - CROTCH) * self.person.legs

    def _draw_leg(self, leg: list[Point]) -> None:
        person = self.person
        is_bare = person.legwear != "trousers"
        self._limb(leg, LEG, person.skin if is_bare else person.lower)
        middle = _between(leg[0], leg[1], 0.75)
        if person.legwear == "shorts":
            self._line(leg[0], middle, LEG * 1.15, person.lower)
        if person.leg_pattern == "seams" and not is_bare:
            self._limb(leg, LEG * 0.3, person.second)
        elif person.leg_pattern == "knees":
            self._disc(leg[1], LEG * 0.8, person.second)
        elif person.leg_pattern == "cuffs":
            self._line(_between(leg[1], leg[2], 0.7), leg[2], LEG * 1.05, person.second)
        toe = 0.3 * self.stance.facing if self.is_side else 0.0
        self._line(leg[2], (leg[2][0] + toe, leg[2][1] + 0.15), 0.25, person.shoes)

    def _draw_arm(self, arm: list[Point]) -> None:
        person = self.person
        self._limb(arm, ARM, person.skin)
        self._line(arm[0], _between(arm[0], arm[1], 0.7), ARM * 1.15, person.upper)
        if person.has_long_sleeves:
            self._line(arm[0], arm[1], ARM * 1.15, person.upper)
            self._line(arm[1], _between(arm[1], arm[2], 0.85), ARM * 1.1, person.upper)

    # Trunk

    def _torso(self) -> None:
        s, h = self.shoulders, self.hips
        waist = 0.5 * (s + h) * 0.88
        shape = [(-s, SHOULDER - 0.15), (-0.3, 1.05), (0.3, 1.05), (s, SHOULDER - 0.15)]
        shape += [(waist, WAIST), (h, CROTCH), (-h, CROTCH), (-waist, WAIST)]
        self._dress(shape, self.person.upper)
        belt = [(-h, CROTCH - 0.25), (h, CROTCH - 0.25), (h, CROTCH + 0.1), (-h, CROTCH + 0.1)]
        self._polygon(belt, self.person.lower)

    def _dress(self, shape: list[Point], color: Color) -> None:
        mask = Image.new("L", self.picture.size)
        ImageDraw.Draw(mask).polygon([self.frame.at(*p) for p in shape], fill=255)
        cloth = Image.new("RGB", self.picture.size, color)
        self._pattern(ImageDraw.Draw(cloth))
        self.picture.paste(cloth, mask=mask)

    def _pattern(self, pen: ImageDraw.ImageDraw) -> None:
        color, pattern = self.person.second, self.person.pattern
        boxes: list[tuple[float, float, float, float]] = []
        if pattern in ("hoops", "checks"):
            boxes += [(-2, y, 2, y + 0.22) for y in (1.3, 1.8, 2.3, 2.8, 3.3)]
        if pattern in ("stripes", "checks"):
            boxes += [(x, 0, x + 0.16, 5) for x in (-0.9, -0.5, -0.1, 0.3, 0.7)]
        if pattern == "yoke":
            boxes += [(-2, 0, 2, 2.0)]
        if pattern == "dots":
            centers = [(x, y) for y in (1.5, 2.1, 2.7, 3.3) for x in (-0.7, -0.2, 0.3, 0.8)]
            boxes += [(x - 0.1, y - 0.1, x + 0.1, y + 0.1) for x, y in centers]
        for left, top, right, bottom in boxes:
            pen.rectangle([self.frame.at(left, top), self.frame.at(right, bottom)], fill=color)
        if pattern == "sash":
            slope = self.left or self.stance.facing
            ends = [self.frame.at(-slope, 1.2), self.frame.at(slope, 3.8)]
            pen.line(ends, fill=color, width=max(1, round(0.35 * self.frame.head)))

    def _skirt(self) -> None:
        hem = self._y(KNEE) - 0.3
        shape = [(-self.hips, CROTCH - 0.25), (self.hips, CROTCH - 0.25)]
        shape += [(self.hips * 1.35, hem), (-self.hips * 1.35, hem)]
        self._polygon(shape, self.person.lower)

    def _head(self) -> None:
        person, is_back = self.person, self.stance.view == "back"
        self._line((0, 0.8), (0, 1.2), 0.17, person.skin)
        if person.haircut == "long":
            self._ellipse(0, 0.62, 0.47, 0.68, person.hair)
        self._ellipse(0, 0.5, 0.36, 0.48, person.skin)
        hair = person.second if person.haircut == "cap" else person.hair
        if person.haircut != "bald":
            self._polygon([(-0.38, 0.4), (-0.3, 0.02), (0.3, 0.02), (0.38, 0.4)], hair)
            if is_back:
                self._ellipse(0, 0.55, 0.38, 0.42, person.hair)
            elif self.is_side and person.haircut == "long":
                self._ellipse(-0.25 * self.stance.facing, 0.55, 0.2, 0.42, person.hair)
            if person.haircut == "cap" and not is_back:
                self._ellipse(0.3 * self.stance.facing * self.is_side, 0.38, 0.42, 0.07, hair)

    # What is on and beside the clothes

    def _mark(self, mark: Mark) -> None:
        if (place := self._place(mark)) is not None:
            self._disc(place, 0.27, mark.color)

    def _place(self, mark: Mark) -> Point | None:
        """None where it cannot be seen."""
        if self.is_side:
            if mark.side != self.near:
                return None  # on the other side of the person
            limb = {"arm": self.arms[1], "thigh": self.legs[1], "shin": self.legs[1]}
            trunk = {"chest": (0.15 * self.stance.facing, 1.8), "belly": (0.1, 3.0)}
        else:
            seen = (mark.side * self.left + 1) // 2
            limb = {"arm": self.arms[seen], "thigh": self.legs[seen], "shin": self.legs[seen]}
            x = mark.side * self.left * 0.45
            trunk = {"chest": (x, 1.8), "belly": (x, 3.0)}
            if self.stance.view == "back" and mark.part in trunk:
                return None
        if mark.part in trunk:
            return trunk[mark.part]
        joints = limb[mark.part]
        first = 1 if mark.part == "shin" else 0
        return _between(joints[first], joints[first + 1], 0.55)

    def _backpack(self) -> None:
        if self.stance.view == "back":
            x, y, width = 0.0, 2.2, 0.62
        elif self.is_side:
            x, y, width = -0.85 * self.stance.facing, 2.2, 0.45
        else:  # straps
            for side in (-1, 1):
                self._line((side * 0.5, 1.2), (side * 0.55, 2.7), 0.12, self.person.bag_color)
            return
        self._ellipse(x, y, width, 0.85, self.person.bag_color)

    def _carried(self) -> None:
        person = self.person
        side = person.bag_side * self.left or -self.stance.facing  # from the side: at the back
        if self.is_side and person.bag_side != self.near:
            return
        if person.bag == "shoulder":
            place = (side * (self.hips + 0.1), 3.7)
            self._line((-side * 0.4, 1.2), place, 0.08, person.bag_color)
            self._box(place, 0.38, 0.4, person.bag_color)
        elif person.bag == "hand":
            hand = self.arms[1 if side > 0 or self.is_side else 0][2]
            self._box((hand[0], hand[1] + 0.5), 0.38, 0.42, person.bag_color)

    # Shapes, in heads

    def _limb(self, joints: list[Point], radius: float, color: Color) -> None:
        for start, end in itertools.pairwise(joints):
            self._line(start, end, radius, color)

    def _line(self, start: Point, end: Point, radius: float, color: Color) -> None:
        width = max(1, round(2 * radius * self.frame.head))
        self.pen.line([self.frame.at(*start), self.frame.at(*end)], fill=color, width=width)
        for point in (start, end):
            self._disc(point, radius, color)

    def _disc(self, center: Point, radius: float, color: Color) -> None:
        self._ellipse(*center, radius, radius, color)

    def _ellipse(self, x: float, y: float, width: float, height: float, color: Color) -> None:
        corners = [self.frame.at(x - width, y - height), self.frame.at(x + width, y + height)]
        self.pen.ellipse(corners, fill=color)

    def _box(self, center: Point, width: float, height: float, color: Color) -> None:
        (x, y) = center
        corners = [self.frame.at(x - width, y - height), self.frame.at(x + width, y + height)]
        self.pen.rectangle(corners, fill=color)

    def _polygon(self, points: list[Point], color: Color) -> None:
        self.pen.polygon([self.frame.at(*point) for point in points], fill=color)


def _between(start: Point, end: Point, share: float) -> Point:
    return start[0] + (end[0] - start[0]) * share, start[1] + (end[1] - start[1]) * share
