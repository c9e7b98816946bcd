"""Streets: walls, windows, cars and grass, in colors of low saturation."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from people.street.brush import toned
from people.street.identities import Color

LENGTH, EXTRA = 6, 40  # of a place: photos beside each other, pixels more than their height
GROUNDS = ((92, 92, 94), (104, 102, 100), (130, 125, 117), (148, 146, 141), (90, 95, 74))
WALLS = (
    (126, 100, 88),
    (168, 160, 147),
    (140, 140, 138),
    (98, 104, 110),
    (70, 80, 58),
    (188, 184, 176),
)
CARS = ((36, 37, 40), (176, 178, 180), (206, 206, 204), (96, 98, 102), (52, 60, 76), (96, 40, 40))


def draw_place(horizon: float, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """A long picture of which photos are parts; `horizon` in heights of a photo."""
    width, height = size[0] * LENGTH, size[1] + EXTRA
    line = int(horizon * size[1]) + EXTRA // 2
    place = Image.new("RGB", (width, height))
    pen = ImageDraw.Draw(place)
    _ground(pen, line, place.size, rng)
    _walls(pen, line, width, rng)
    for _ in range(rng.integers(1, 5)):
        _car(pen, int(rng.integers(width)), line + int(rng.integers(4, 26)), rng)
    return _weathered(place.filter(ImageFilter.GaussianBlur(1.6)), rng)


def _any(colors: tuple[Color, ...], rng: np.random.Generator) -> Color:
    return toned(colors[rng.integers(len(colors))], rng.uniform(0.8, 1.15))


def _ground(
    pen: ImageDraw.ImageDraw, line: int, size: tuple[int, int], rng: np.random.Generator
) -> None:
    (width, height), color = size, _any(GROUNDS, rng)
    edges = np.sort(rng.uniform(line, height, 3)).astype(int).tolist()
    for top, bottom in zip([line, *edges], [*edges, height], strict=True):
        pen.rectangle([0, top, width, bottom], fill=toned(color, rng.uniform(0.9, 1.1)))
    if rng.random() < 0.3:  # a strip of grass along the wall
        pen.rectangle([0, line, width, line + 30], fill=_any(GROUNDS[-1:], rng))
    joints = toned(color, 0.86)
    if rng.random() < 0.6:  # slabs, which become larger towards the camera
        y, step = line + 8.0, 7.0
        while y < height:
            pen.line([0, y, width, y], fill=joints)
            y, step = y + step, step * 1.35
        for x in range(-width, 2 * width, 60):
            pen.line([width / 2 + (x - width / 2) * 0.4, line, x, height], fill=joints)
    if rng.random() < 0.4:  # a kerb
        y = rng.uniform(line + 20, height)
        pen.rectangle([0, y, width, y + 7], fill=toned(color, 1.3))


def _walls(pen: ImageDraw.ImageDraw, line: int, width: int, rng: np.random.Generator) -> None:
    x = 0
    while x < width:
        right, color = x + int(rng.integers(60, 260)), _any(WALLS, rng)
        pen.rectangle([x, 0, right, line], fill=color)
        pen.rectangle([x, line - 6, right, line], fill=toned(color, 0.7))
        glass = toned((74, 82, 90), rng.uniform(0.6, 1.5))
        kind = rng.random()
        if kind < 0.4:  # windows
            for left in range(x + 14, right - 30, 52):
                pen.rectangle([left, line - 130, left + 32, line - 50], fill=glass)
        elif kind < 0.6:  # a door
            left = x + int(rng.integers(8, 40))
            pen.rectangle([left, line - 120, left + 46, line], fill=toned(color, 0.5))
        elif kind < 0.7:  # a shop
            pen.rectangle([x + 6, line - 110, right - 6, line - 14], fill=glass)
        x = right


def _car(pen: ImageDraw.ImageDraw, x: int, bottom: int, rng: np.random.Generator) -> None:
    color, scale = _any(CARS, rng), rng.uniform(0.8, 1.3)

    def at(left: float, top: float, right: float, low: float) -> list[float]:
        return [x + left * scale, bottom + top * scale, x + right * scale, bottom + low * scale]

    for wheel in (20, 118):
        pen.ellipse(at(wheel, -24, wheel + 24, 0), fill=(26, 26, 28))
    pen.rounded_rectangle(at(30, -78, 130, -30), 16, fill=toned(color, 0.9))
    pen.rounded_rectangle(at(38, -72, 122, -44), 8, fill=(48, 54, 60))
    pen.rounded_rectangle(at(0, -48, 170, -8), 10, fill=color)


def _weathered(place: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Stains and grain."""
    light = np.asarray(place, dtype=np.float32)
    height, width = light.shape[:2]
    stains = Image.fromarray(rng.integers(0, 255, (height // 24, width // 24), dtype=np.uint8))
    field = np.asarray(stains.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
    grain = rng.normal(0, 3, (height, width)).astype(np.float32)
    light = light * (0.9 + 0.2 * field[..., None] / 255) + grain[..., None]
    return Image.fromarray(np.clip(light, 0, 255).astype(np.uint8))
