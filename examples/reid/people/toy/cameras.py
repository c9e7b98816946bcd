"""How a photo differs from the next one of the same person: camera, pose, box, occlusion."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from people.toy.drawing import Figure, Frame, Stance
from people.toy.identities import CLOTHES, Color, Person

HEIGHT, WIDTH = 128, 64
OVERSAMPLING = 2
VIEWS = ("front", "front", "back", "side", "side")
HEADS = 8.0  # height of a person


@dataclass(frozen=True)
class Camera:
    """Its place and its colors."""

    gains: tuple[float, float, float]  # of red, green and blue
    gamma: float
    blur: float  # radius in pixels
    noise: float  # standard deviation, of 255
    wall: Color
    floor: Color
    horizon: float  # in heights of the picture
    quality: int = 95  # of JPEG


def draw_cameras(count: int, seed: int) -> list[Camera]:
    """The same for the same seed."""
    return [_camera(np.random.default_rng([seed, 3, number])) for number in range(count)]


def _camera(rng: np.random.Generator) -> Camera:
    return Camera(
        gains=tuple(rng.uniform(0.78, 1.22, 3)),
        gamma=rng.uniform(0.75, 1.35),
        blur=rng.uniform(0.0, 1.0),
        noise=rng.uniform(3, 9),
        wall=tuple(int(x) for x in rng.integers(60, 220, 3)),
        floor=tuple(int(x) for x in rng.integers(60, 200, 3)),
        horizon=rng.uniform(0.35, 0.7),
    )


def photograph(person: Person, camera: Camera, rng: np.random.Generator) -> tuple[Image.Image, str]:
    """A photo `[HEIGHT, WIDTH]` of a person, as a detector would cut it out, and the view."""
    picture, stance = _place(camera, rng), _stance(rng)
    Figure(picture, person, stance, _frame(rng)).draw()
    if rng.random() < 0.15:
        _occlude(picture, rng)
    return _develop(picture, camera, rng), stance.view


def photograph_nobody(camera: Camera, rng: np.random.Generator) -> Image.Image:
    """What a detector takes for a person."""
    picture = _place(camera, rng)
    for _ in range(3):
        _occlude(picture, rng)
    return _develop(picture, camera, rng)


def _place(camera: Camera, rng: np.random.Generator) -> Image.Image:
    width, height = WIDTH * OVERSAMPLING, HEIGHT * OVERSAMPLING
    wall, floor = (_elsewhere(color, rng) for color in (camera.wall, camera.floor))
    picture = Image.new("RGB", (width, height), wall)
    pen = ImageDraw.Draw(picture)
    horizon = camera.horizon + rng.uniform(-0.15, 0.15)
    pen.rectangle([0, int(horizon * height), width, height], fill=floor)
    for _ in range(rng.integers(2, 6)):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        right, bottom = x + rng.uniform(10, 50), y + rng.uniform(10, 120)
        pen.rectangle([x, y, right, bottom], fill=tuple(rng.integers(30, 230, 3).tolist()))
    return picture


def _elsewhere(color: Color, rng: np.random.Generator) -> Color:
    """People stand at different places before the same camera."""
    return tuple((np.array(color) * 0.4 + rng.integers(60, 220, 3) * 0.6).astype(int).tolist())


def _stance(rng: np.random.Generator) -> Stance:
    return Stance(
        view=VIEWS[rng.integers(len(VIEWS))],
        facing=int(rng.choice((-1, 1))),
        phase=rng.uniform(0, 2 * math.pi),
        stride=rng.uniform(0.1, 0.55),
    )


def _frame(rng: np.random.Generator) -> Frame:
    """The box of a detector: shifted, too large or too small, or without the legs."""
    height = HEIGHT * OVERSAMPLING
    head = height / HEADS * rng.uniform(0.78, 1.02)
    if rng.random() < 0.12:
        head *= rng.uniform(1.25, 1.6)
        top = 0.0
    else:
        top = (height - HEADS * head) / 2
    return Frame(
        center=WIDTH * OVERSAMPLING * rng.uniform(0.42, 0.58),
        top=top + height * rng.uniform(-0.08, 0.08),
        head=head,
    )


def _occlude(picture: Image.Image, rng: np.random.Generator) -> None:
    width, height = picture.size
    if rng.random() < 0.5:  # something low in front
        box = [0, height * rng.uniform(0.6, 0.8), width, height]
    else:  # a post
        x = width * rng.uniform(0.0, 0.8)
        box = [x, 0, x + width * rng.uniform(0.12, 0.3), height]
    color = np.array(CLOTHES[rng.integers(len(CLOTHES))]) * 0.8
    ImageDraw.Draw(picture).rectangle(box, fill=tuple(color.astype(int).tolist()))


def _develop(picture: Image.Image, camera: Camera, rng: np.random.Generator) -> Image.Image:
    small = picture.resize((WIDTH, HEIGHT), Image.Resampling.BOX)
    small = small.filter(ImageFilter.GaussianBlur(camera.blur))
    light = np.asarray(small, dtype=np.float32) / 255
    exposure = rng.uniform(0.8, 1.2)
    light = np.clip(light * np.float32(camera.gains) * exposure, 0, 1) ** camera.gamma
    light = light * 255 + rng.normal(0, camera.noise, light.shape)
    return Image.fromarray(np.clip(light, 0, 255).astype(np.uint8))
