"""Where images come from: Fashion-MNIST, or a folder of photographs."""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

FASHION = Path("/usr/share/datasets/fashion-mnist")  # of Debian's dataset-fashion-mnist
HELD_OUT = 0  # seed of the order in which images are kept for validation
Batches = Iterator[tuple[Tensor, Tensor]]  # images [B, C, height, width], normalized, and labels


class Source(Protocol):
    """Images of one task, the same for every encoding and a seed."""

    num_classes: int
    available: int  # images that trainings draw from

    def training(self, seed: int, *, images: int, passes: int, batch: int) -> Batches:
        """So many passes over so many images, drawn and ordered by the seed."""
        ...

    def validation(self, count: int) -> Batches:
        """Images that no training sees, the same for all."""
        ...

    def tests(self, seed: int, count: int, size: tuple[int, int]) -> Batches:
        """Images that nothing else sees, drawn by the seed, at this size in pixels."""
        ...


@cache
def open_source(tier: str, folder: Path, pixels: int, validation: int) -> Source:
    """That of a tier, once in each process."""
    if tier == "cpu":
        return Fashion(folder, pixels, validation)
    from which.photographs import Photographs

    return Photographs(folder, pixels, validation)


class Fashion:
    """28x28 gray images of clothes, ten classes (Xiao et al. 2017, arXiv 1708.07747).

    Larger and smaller images are interpolated: they show no more than those of 28 pixels.

    Raises:
        FileNotFoundError: the folder lacks one of the four files.
    """

    num_classes = 10

    def __init__(self, folder: Path, pixels: int, validation: int) -> None:
        images, labels = read_part(folder, "train")
        order = torch.randperm(len(images), generator=_generator(HELD_OUT))
        held_out, rest = order[:validation], order[validation:]
        self.held_out = images[held_out], labels[held_out]
        self.rest = images[rest], labels[rest]
        self.available = len(rest)
        self.unseen = read_part(folder, "t10k")
        self.pixels = pixels

    def training(self, seed: int, *, images: int, passes: int, batch: int) -> Batches:
        """See `Source`."""
        generator = _generator(seed)
        drawn = torch.randperm(len(self.rest[0]), generator=generator)[:images]
        epochs = math.ceil(passes / len(drawn))
        order = torch.cat([torch.randperm(len(drawn), generator=generator) for _ in range(epochs)])
        for places in order[: passes // batch * batch].split(batch):
            yield self._as_input(self.rest, drawn[places], (self.pixels, self.pixels))

    def validation(self, count: int) -> Batches:
        """See `Source`."""
        for places in torch.arange(min(count, len(self.held_out[0]))).split(50):
            yield self._as_input(self.held_out, places, (self.pixels, self.pixels))

    def tests(self, seed: int, count: int, size: tuple[int, int]) -> Batches:
        """See `Source`."""
        drawn = torch.randperm(len(self.unseen[0]), generator=_generator(seed))[:count]
        for places in drawn.split(max(4, 20_000 // (size[0] * size[1]))):
            yield self._as_input(self.unseen, places, size)

    @staticmethod
    def _as_input(
        part: tuple[Tensor, Tensor], places: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        images = (part[0][places][:, None].float() / 255 - 0.286) / 0.353  # mean and spread
        if images.shape[-2:] != size:
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        return images, part[1][places]


def read_part(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images `[N, 28, 28]` and labels `[N]` from the data set's own format."""
    paths = [folder / f"{part}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")]
    if missing := [str(path) for path in paths if not path.is_file()]:
        raise FileNotFoundError(
            f"Fashion-MNIST lacks {', '.join(missing)}: install Debian's dataset-fashion-mnist, or "
            "give --data a folder with its four files"
        )
    images, labels = (_read_idx(path) for path in paths)
    return images, labels.long()


def _read_idx(path: Path) -> Tensor:
    """An array: two zero bytes, the type, the number of sides, the sides, the numbers."""
    content = gzip.decompress(path.read_bytes())
    sides = np.frombuffer(content, ">u4", content[3], offset=4)
    return torch.tensor(np.frombuffer(content, np.uint8, offset=4 + 4 * content[3])).view(*sides)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
