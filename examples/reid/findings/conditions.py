"""Tests under other conditions than those of the training: what changes between two cameras."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from data.batches import photo_loader
from data.market import Photo, Splits
from data.sides import sides_of
from model.network import ReIDNetwork, set_size
from search.features import embed, score
from search.retrieval import Scores
from torch import Tensor
from torchvision.transforms.v2 import functional as v2
from training.config import Config

Change = Callable[[Tensor, Tensor], Tensor]  # of images [B, 3, height, width] and their numbers

SHIFT, FAR = 1 / 8, 1 / 4  # of the height
TALLER = 3 / 2  # times the height: 8x4 patches become 12x4, and 16x8 become 24x8
CUT = 1 / 3  # of the height
OCCLUDED = 0.4, 0.5  # of the height and of the width: a fifth of the crop


def as_they_are(images: Tensor, numbers: Tensor) -> Tensor:
    """The crops of the training."""
    return images


def shifted(images: Tensor, share: float) -> Tensor:
    """Down by this share of the height; the uppermost row fills what becomes free."""
    rows = round(share * images.shape[-2])
    if not rows:
        return images
    return torch.cat([images[..., :1, :].expand(-1, -1, rows, -1), images[..., :-rows, :]], dim=-2)


def partial(images: Tensor, numbers: Tensor) -> Tensor:
    """Without the lower third; the detector's box ends there, so that the rest fills the crop."""
    height, width = images.shape[-2:]
    seen = images[..., : height - round(CUT * height), :]
    return v2.resize(seen, [height, width], antialias=True)


def occluded(images: Tensor, numbers: Tensor) -> Tensor:
    """A rectangle in almost gray before a fifth of the crop, the same for the same photo."""
    images = images.clone()
    height, width = (
        round(part * side) for part, side in zip(OCCLUDED, images.shape[-2:], strict=True)
    )
    for image, number in zip(images, numbers.tolist(), strict=True):
        rng = np.random.default_rng([7, number])
        top = rng.integers(image.shape[-2] - height + 1)
        left = rng.integers(image.shape[-1] - width + 1)
        color = rng.integers(60, 180) + rng.integers(-15, 16, 3)  # near gray, as walls and cars
        color = torch.from_numpy(color.astype(np.uint8))[:, None, None]
        image[:, top : top + height, left : left + width] = color
    return images


QUERIES: dict[str, Change] = {  # the gallery is as it was
    "as trained": as_they_are,
    "shifted": lambda images, _: shifted(images, SHIFT),
    "shifted far": lambda images, _: shifted(images, FAR),
    "partial": partial,
    "occluded": occluded,
}
CONDITIONS = {
    "as trained": "crops as in the training",
    "shifted": "queries an eighth of the height lower",
    "shifted far": "queries a quarter of the height lower",
    "taller": "crops of 3/2 the height, as 24x8 patches are to 16x8",
    "partial": "queries without the lower third, the rest as tall as the crop",
    "occluded": "queries with a gray rectangle before a fifth of them",
}


def score_all(network: ReIDNetwork, config: Config, data: Splits) -> dict[str, Scores]:
    """Of each of the `CONDITIONS`, in their order.

    `data` are those of the training, so that a network with side information is told whose camera
    took a photo, and what its view is.
    """
    gallery = _embed(network, data.gallery, config.size)
    found = {
        name: score(_embed(network, data.query, config.size, change), gallery, data)
        for name, change in QUERIES.items()
    }
    found["taller"] = score_taller(network, config, data)
    return {name: found[name] for name in CONDITIONS}


def score_taller(network: ReIDNetwork, config: Config, data: Splits) -> Scores:
    """Of all crops stretched to more rows of patches; the encodings follow, and return."""
    size = round(config.height * TALLER), config.width
    set_size(network.vit, size, config.table_resize)
    query, gallery = (_embed(network, part, size) for part in (data.query, data.gallery))
    set_size(network.vit, config.size, config.table_resize)
    return score(query, gallery, data)


def _embed(
    network: ReIDNetwork,
    photos: tuple[Photo, ...],
    size: tuple[int, int],
    change: Change = as_they_are,
) -> Tensor:
    batches = ((change(images, at), at) for images, at in photo_loader(photos, size))
    return torch.cat(embed(network, batches, sides=sides_of(photos))).cpu()
