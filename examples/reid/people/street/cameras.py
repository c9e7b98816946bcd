"""How a photo in the street differs from the next one: camera, place, pose, box, occlusion."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from people.street.body import SOLE, Body, Pose
from people.street.brush import Frame, toned
from people.street.drawing import draw
from people.street.identities import Person, draw_person
from people.street.places import draw_place
from people.street.shares import PHOTO, choose

HEIGHT, WIDTH = 128, 64
OVERSAMPLING = 2
LARGE = WIDTH * OVERSAMPLING, HEIGHT * OVERSAMPLING
GRAIN = np.random.default_rng(0).standard_normal((2 * HEIGHT, 2 * WIDTH, 3), dtype=np.float32)
GRAY = np.array([0.299, 0.587, 0.114])
THINGS = ((70, 72, 76), (96, 92, 88), (52, 56, 60), (120, 118, 114), (62, 68, 54))


@dataclass(frozen=True)
class Camera:
    """Its place, its height and its colors, which are all near neutral."""

    exposure: float
    gamma: float
    warmth: float  # of red, against blue
    saturation: float
    blur: float  # radius in pixels
    noise: float  # standard deviation, of 255
    quality: int  # of JPEG
    tilt: float  # see `Frame`
    light: float  # from where, -1 left to 1 right
    place: Image.Image = field(repr=False, compare=False)


def draw_cameras(count: int, seed: int) -> list[Camera]:
    """The same for the same seed."""
    return [_camera(np.random.default_rng([seed, 8, number])) for number in range(count)]


def _camera(rng: np.random.Generator) -> Camera:
    tilt = rng.uniform(0.05, 0.34)
    return Camera(
        exposure=rng.uniform(0.8, 1.2),
        gamma=rng.uniform(0.75, 1.15),
        warmth=rng.uniform(-0.06, 0.07),
        saturation=rng.uniform(0.65, 1.0),
        blur=rng.uniform(0.25, 0.75),
        noise=rng.uniform(2, 6),
        quality=int(rng.integers(45, 85)),
        tilt=tilt,
        light=rng.choice((-1, 1)) * rng.uniform(0.5, 1.0),
        place=draw_place(0.5 - 1.3 * tilt, LARGE, rng),
    )


def photograph(person: Person, camera: Camera, rng: np.random.Generator) -> tuple[Image.Image, str]:
    """A photo `[HEIGHT, WIDTH]` of a person, as a detector would cut it out, and the view."""
    words = choose(PHOTO, rng)
    return photograph_as(words, person, camera, rng), words["view"]


def photograph_as(
    words: Mapping[str, str], person: Person, camera: Camera, rng: np.random.Generator
) -> Image.Image:
    """With the choices of `PHOTO` made."""
    picture = _somewhere(camera, rng)
    frame = _frame(words, camera, rng)
    if words["behind"] == "person":
        _somebody(picture, camera, _farther(frame, rng), rng)
    pose = _pose(words, rng)
    _shadow(picture, frame)
    draw(Body(picture, person, pose, frame, camera.light))
    side = -1 if words["covered"] == "left" else 1
    if words["before"] == "person":
        _somebody(picture, camera, _nearer(frame, side, rng), rng)
    elif words["before"] != "nothing":
        _thing(picture, words["before"], side, rng)
    return _develop(picture, camera, rng)


def photograph_nobody(camera: Camera, rng: np.random.Generator) -> Image.Image:
    """What a detector takes for a person."""
    picture = _somewhere(camera, rng)
    for kind, side in (("low", 1), ("post", -1), ("post", 1)):
        _thing(picture, kind, side, rng)
    return _develop(picture, camera, rng)


def _somewhere(camera: Camera, rng: np.random.Generator) -> Image.Image:
    """A part of what the camera sees."""
    (width, height), place = LARGE, camera.place
    x = int(rng.integers(place.width - width))
    y = int(rng.integers(place.height - height))
    return place.crop((x, y, x + width, y + height))


def _pose(words: Mapping[str, str], rng: np.random.Generator) -> Pose:
    return Pose(
        view=words["view"],
        facing=-1 if words["facing"] == "left" else 1,
        phase=rng.uniform(0, 2 * math.pi),
        stride=rng.uniform(0.08, 0.5),
        arms=words["arms"],
        turn=rng.uniform(-0.6, 0.6),
    )


def _frame(words: Mapping[str, str], camera: Camera, rng: np.random.Generator) -> Frame:
    """The box of a detector: shifted, too large or too small, or without the legs."""
    width, height = LARGE
    tilt = camera.tilt * rng.uniform(0.7, 1.2)
    whole = SOLE - tilt * SOLE**2 / 16  # heads of the picture
    head = height / whole * rng.uniform(0.84, 1.0)
    top = (height - whole * head) / 2
    if words["figure"] == "partial":
        head *= rng.uniform(1.3, 1.75)
        top = 0.02 * height
    return Frame(
        center=width * (0.5 + rng.normal(0, 0.04)),
        top=top + height * rng.normal(0, 0.02),
        head=head,
        tilt=tilt,
    )


def _farther(frame: Frame, rng: np.random.Generator) -> Frame:
    share = rng.uniform(0.55, 0.85)
    side = rng.choice((-1, 1))
    return Frame(
        center=LARGE[0] * (0.5 + side * rng.uniform(0.25, 0.5)),
        top=frame.top + frame.head * rng.uniform(-0.3, 0.6),
        head=frame.head * share,
        tilt=frame.tilt,
    )


def _nearer(frame: Frame, side: int, rng: np.random.Generator) -> Frame:
    return Frame(
        center=LARGE[0] * (0.5 + side * rng.uniform(0.24, 0.42)),
        top=frame.top + frame.head * rng.uniform(0.4, 1.8),
        head=frame.head * rng.uniform(1.0, 1.2),
        tilt=frame.tilt,
    )


def _somebody(picture: Image.Image, camera: Camera, frame: Frame, rng: np.random.Generator) -> None:
    pose = _pose(choose(PHOTO, rng), rng)
    _shadow(picture, frame)
    draw(Body(picture, draw_person(rng), pose, frame, camera.light))


def _shadow(picture: Image.Image, frame: Frame) -> None:
    """On the ground below the feet."""
    x, y = frame.at(0, SOLE)
    if y < picture.height:
        ground = picture.getpixel((min(max(int(x), 0), picture.width - 1), max(int(y) - 2, 0)))
        w, h = 0.85 * frame.head, 0.16 * frame.head
        ImageDraw.Draw(picture).ellipse([x - w, y - h, x + w, y + h], fill=toned(ground, 0.66))


def _thing(picture: Image.Image, kind: str, side: int, rng: np.random.Generator) -> None:
    (width, height), pen = picture.size, ImageDraw.Draw(picture)
    color = toned(THINGS[rng.integers(len(THINGS))], rng.uniform(0.8, 1.2))
    if kind == "low":  # a wall, a car, a hedge
        top = height * rng.uniform(0.6, 0.8)
        left = width * rng.uniform(-0.4, 0.1) if side < 0 else width * rng.uniform(-0.1, 0.2)
        box = [left, top, left + 1.2 * width, height + 30]
        pen.rounded_rectangle(box, 22, fill=toned(color, 1.2))
        pen.rectangle([box[0], top + 18, box[2], height], fill=color)
    else:
        x, wide = width * (0.5 + side * rng.uniform(0.1, 0.35)), width * rng.uniform(0.06, 0.14)
        pen.rectangle([x - wide, 0, x + wide, height], fill=color)
        pen.rectangle([x - wide, 0, x - 0.4 * wide, height], fill=toned(color, 1.2))


def _develop(picture: Image.Image, camera: Camera, rng: np.random.Generator) -> Image.Image:
    exposure, warmth = camera.exposure * rng.uniform(0.85, 1.15), rng.normal(0, 0.015)
    small = picture.reduce(OVERSAMPLING)
    small = small.filter(ImageFilter.GaussianBlur(camera.blur * rng.uniform(0.8, 1.5)))
    small = small.convert("RGB", color_matrix(camera, exposure, warmth)).point(_curve(camera.gamma))
    y, x = rng.integers(HEIGHT), rng.integers(WIDTH)
    noise = GRAIN[y : y + HEIGHT, x : x + WIDTH] * np.float32(camera.noise)
    noisy = np.asarray(small, dtype=np.float32) + noise
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def color_matrix(camera: Camera, exposure: float, warmth: float) -> tuple[float, ...]:
    """The matrix of saturation, exposure and warmth."""
    warmth += camera.warmth
    gains = exposure * np.array([1 + warmth, 1.0, 1 - warmth])
    matrix = camera.saturation * np.eye(3) + (1 - camera.saturation) * GRAY
    rows = np.concatenate([gains[:, None] * matrix, np.zeros((3, 1))], axis=1)
    return tuple(rows.ravel().tolist())


def _curve(gamma: float) -> list[int]:
    """Darker or lighter, with more or less contrast in the dark."""
    curved = (np.arange(256) / 255) ** gamma * 255
    return curved.astype(int).tolist() * 3
