"""Photographs for a rehearsal: stripes that run down, across, or both ways."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = 3
PIXELS = 48


def draw_photographs(folder: Path, train: int = 32, val: int = 8) -> None:
    """Writes train/CLASS/*.png and val/CLASS/*.png, so many of each class."""
    rng = np.random.default_rng(0)
    for part, count in {"train": train, "val": val}.items():
        for label in range(CLASSES):
            path = folder / part / f"class-{label}"
            path.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(_draw(label, rng)).save(path / f"{number}.png")


def _draw(label: int, rng: np.random.Generator) -> np.ndarray:
    rows, columns = np.mgrid[:PIXELS, :PIXELS] + rng.integers(PIXELS, size=(2, 1, 1))
    place = (rows, columns, rows + columns)[label]
    stripes = (place // 6 % 2)[:, :, None] * rng.integers(80, 200, 3)
    return (stripes + rng.integers(0, 55, (PIXELS, PIXELS, 3))).astype(np.uint8)
