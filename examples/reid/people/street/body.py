"""Where a person of the street has shoulders, knees and hands, in one pose seen from one side."""

from __future__ import annotations

import math
from dataclasses import dataclass

from PIL import Image

from people.street.brush import Brush, Frame, Point, Row
from people.street.identities import Person

SHOULDER, WAIST, HIP, KNEE, ANKLE, SOLE = 1.5, 2.9, 3.7, 5.5, 7.1, 7.4  # heads below the top
EASE = {"puffer": 0.13, "coat": 0.08, "jacket": 0.06, "hoodie": 0.06, "blazer": 0.04}
HEMS = {"sweater": 3.7, "shirt": 3.85, "blazer": 4.1, "coat": 5.1}  # others: 3.75
HEM = {"short": -0.2, "usual": 0.0, "long": 0.28}


@dataclass(frozen=True)
class Pose:
    """How a person is seen in one photo."""

    view: str  # "front", "back" or "side"
    facing: int  # in a side view: -1 to the left of the picture, 1 to the right
    phase: float  # of a step, 0 to 2 pi
    stride: float  # largest angle of the legs
    arms: str  # of `shares.PHOTO`
    turn: float  # from straight ahead, in a view from the front or the back, as an angle


class Body:
    """Where the parts of one person are on one picture, and the brush to draw them."""

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
        self.rows = self._rows()  # of the trunk with its top
        is_busy = person.is_a("bag", "hand", "carrier")  # the hands hang down
        self.arms_are = "hanging" if is_busy else pose.arms
        self.legs = [self._leg(side) for side in (-1, 1)]
        self.arms = [self._arm(side) for side in (-1, 1)]

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


def between(start: Point, end: Point, share: float) -> Point:
    """On the line through both; beyond the end for more than 1."""
    return start[0] + (end[0] - start[0]) * share, start[1] + (end[1] - start[1]) * share
