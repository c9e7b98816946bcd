"""Shaded shapes on a picture, in heads: what is round is darker at the side without light."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from people.street.identities import Color

Point = tuple[float, float]
Row = tuple[float, float, float]  # y, left, right

SHADE, SHINE = 0.74, 1.45  # of the side without light, and of what reflects


@dataclass(frozen=True)
class Frame:
    """Where the figure is in the picture, in pixels, and how far from above it is seen."""

    center: float
    top: float
    head: float  # height of a head at the top of the figure
    tilt: float  # by which share a length is shorter at the feet

    def scale(self, y: float) -> float:
        """Pixels of a head at this height."""
        return self.head * (1 - self.tilt * y / 8)

    def at(self, x: float, y: float) -> Point:
        """Of a point in heads."""
        return self.center + x * self.scale(y), self.top + self.head * (y - self.tilt * y * y / 16)


def toned(color: Color, factor: float) -> Color:
    """Lighter or darker."""
    r, g, b = color
    return min(255, int(r * factor)), min(255, int(g * factor)), min(255, int(b * factor))


class Brush:
    """Draws on one picture in one frame."""

    def __init__(self, picture: Image.Image, frame: Frame, light: float) -> None:
        self.pen, self.frame = ImageDraw.Draw(picture), frame
        self.light = light  # from where, -1 left to 1 right

    def flat(self, points: Sequence[Point], color: Color) -> None:
        """A polygon."""
        self.pen.polygon([self.frame.at(*point) for point in points], fill=color)

    def line(self, points: Sequence[Point], width: float, color: Color) -> None:
        """Of one width."""
        pixels = max(1, round(width * self.frame.head))
        self.pen.line([self.frame.at(*point) for point in points], fill=color, width=pixels)

    def oval(self, x: float, y: float, wide: float, high: float, color: Color) -> None:
        """Half the width and height; shaded."""
        self._oval(x, y, wide, high, toned(color, SHADE))
        self._oval(x + 0.22 * wide * self.light, y - 0.04 * high, 0.8 * wide, 0.92 * high, color)

    def _oval(self, x: float, y: float, wide: float, high: float, color: Color) -> None:
        (cx, cy), scale = self.frame.at(x, y), self.frame.scale(y)
        w, h = wide * scale, high * scale
        self.pen.ellipse([cx - w, cy - h, cx + w, cy + h], fill=color)

    def limb(self, joints: Sequence[Point], radii: Sequence[float], color: Color) -> None:
        """A chain of joints with these radii; shaded."""
        spots = [
            (*self.frame.at(*joint), radius * self.frame.scale(joint[1]))
            for joint, radius in zip(joints, radii, strict=True)
        ]
        self._chain(spots, toned(color, SHADE))
        self._chain([(x + 0.25 * r * self.light, y, 0.74 * r) for x, y, r in spots], color)

    def _chain(self, spots: list[tuple[float, float, float]], color: Color) -> None:
        for (x, y, r), (x2, y2, r2) in itertools.pairwise(spots):
            length = math.hypot(x2 - x, y2 - y) or 1.0
            u, v = (y - y2) / length, (x2 - x) / length
            corners = [x + u * r, y + v * r, x2 + u * r2, y2 + v * r2]
            corners += [x2 - u * r2, y2 - v * r2, x - u * r, y - v * r]
            self.pen.polygon(corners, fill=color)
            self.pen.ellipse([x2 - r2, y2 - r2, x2 + r2, y2 + r2], fill=color)
        x, y, r = spots[0]
        self.pen.ellipse([x - r, y - r, x + r, y + r], fill=color)

    def trunk(self, rows: Sequence[Row], color: Color, shine: float = 0.0) -> None:
        """Between the left and the right of each row; shaded."""
        self.flat(outline(rows), toned(color, SHADE))
        self.flat(outline(self._lit(rows, 0.78)), color)
        if shine:
            self.flat(outline(self._lit(rows, 0.24, 0.42)), toned(color, 1 + shine * (SHINE - 1)))

    def _lit(self, rows: Sequence[Row], share: float, shift: float = 0.16) -> list[Row]:
        lit = []
        for y, left, right in rows:
            center, half = (left + right) / 2, (right - left) / 2
            center += shift * half * self.light
            lit.append((y, center - share * half, center + share * half))
        return lit


def outline(rows: Sequence[Row]) -> list[Point]:
    """Down the left, up the right."""
    return [(left, y) for y, left, _ in rows] + [(right, y) for y, _, right in reversed(rows)]


def edges(rows: Sequence[Row], y: float) -> tuple[float, float]:
    """Left and right at this height."""
    for (y1, l1, r1), (y2, l2, r2) in itertools.pairwise(rows):
        if y <= y2:
            share = (y - y1) / (y2 - y1)
            return l1 + share * (l2 - l1), r1 + share * (r2 - r1)
    return rows[-1][1:]
