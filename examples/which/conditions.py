"""What a trained model is tested on: images as trained, larger ones, rectangles, moved ones."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import posenc
from which.contenders import CONTENDERS, add_encoding
from which.sources import Batches, Source
from which.tiers import Tier
from which.training import build, count_right

KINDS = ("images", "size", "shift")
SHIFT = 1 / 7  # of the side
CROP = 3 / 4  # of the side
Scores = dict[str, tuple[int, int]]  # condition -> images classified correctly, images


def size_names(tier: Tier) -> dict[str, tuple[tuple[int, int], int]]:
    """Condition -> (height, width) in pixels and number of images, of all sizes but the trained."""
    patch = tier.vit["patch_size"]
    sizes = {
        f"{factor:.3g}x": ((round(tier.pixels * factor / patch) * patch,) * 2, count)
        for factor, count in tier.counts.items()
        if factor != 1
    }
    tall = (2 * tier.pixels, tier.pixels)
    return sizes | {"2:1": (tall, tier.wide), "1:2": (tall[::-1], tier.wide)}


def score(
    tier: Tier, source: Source, model: nn.Module, seed: int, kinds: tuple[str, ...]
) -> Scores:
    """Of the kinds of conditions that are asked for."""
    square = (tier.pixels, tier.pixels)
    found = {"1x": count_right(tier, model, source.tests(seed, tier.counts[1], square))}
    if "size" in kinds:
        found |= score_sizes(tier, source, model, seed)
    if "shift" in kinds:
        for name, change in {"shifted": shifted, "cropped": cropped}.items():
            batches = source.tests(seed, tier.moved, square)
            found[name] = count_right(tier, model, _changed(batches, change, seed))
    return found


def score_sizes(tier: Tier, source: Source, model: nn.Module, seed: int) -> Scores:
    """Each at its own size; the model is back at the size of the training afterwards."""
    found = {}
    for name, (size, count) in size_names(tier).items():
        posenc.set_layout(model, size)
        found[name] = count_right(tier, model, source.tests(seed, count, size))
    posenc.set_layout(model, (tier.pixels, tier.pixels))
    return found


def by_other_rule(
    tier: Tier, source: Source, model: nn.Module, encoding: str, readout: str
) -> nn.Module | None:
    """The same weights, whose encoding follows the other rule at other sizes; None without one."""
    if not CONTENDERS[encoding].other:
        return None
    fresh = build(tier, source.num_classes, readout, seed=0)
    other = add_encoding(fresh, encoding, by_other_rule=True)
    other.load_state_dict(model.state_dict())
    return other.to(tier.device).eval()


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """By a part of the side up or down, and left or right; the border fills what becomes free."""
    side = images.shape[-1]
    step = round(SHIFT * side)
    padded = F.pad(images, (step,) * 4, mode="replicate")
    ways = torch.randint(2, (len(images), 2), generator=generator) * 2 * step
    return _windows(padded, ways, side)


def cropped(images: Tensor, generator: torch.Generator) -> Tensor:
    """A part of each image, anywhere in it, at the size of the whole."""
    side = images.shape[-1]
    seen = round(CROP * side)
    places = torch.randint(side - seen + 1, (len(images), 2), generator=generator)
    return F.interpolate(_windows(images, places, seen), (side, side), mode="bilinear")


def _windows(images: Tensor, places: Tensor, side: int) -> Tensor:
    """Squares of the images, from these rows and columns on."""
    return torch.stack(
        [
            image[:, row : row + side, column : column + side]
            for image, (row, column) in zip(images, places.tolist(), strict=True)
        ]
    )


def _changed(
    batches: Batches, change: Callable[[Tensor, torch.Generator], Tensor], seed: int
) -> Batches:
    generator = torch.Generator().manual_seed(seed)
    return ((change(images, generator), labels) for images, labels in batches)
