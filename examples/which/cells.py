"""The three-cell test: do models know where things are?

Images are black but for three cells, one red, one green, one blue, at random places of a grid. The
class is whether red is above green, and whether red is left of blue: four classes of the same
content, so that a model without positions cannot be better than 25 %, and one that knows a single
axis no better than 50 %. After the three-cell experiment of Chowdhury et al. 2025, arXiv
2504.14386, in a form of our own.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from which.sources import Batches
from which.tiers import TIERS, Tier
from which.training import count_right, train

SIDE = 8  # cells
CELL = 2  # pixels
TESTS = 1_000  # images
RATE = 5  # of encodings, relative to the model's


class Cells:
    """The source of these images; see `sources.Source`."""

    num_classes = 4
    available = (SIDE * SIDE) ** 3  # or nearly; each image is drawn anew

    def training(self, seed: int, *, images: int, passes: int, batch: int) -> Batches:
        """No image is seen twice; `images` does not matter."""
        generator = torch.Generator().manual_seed(seed)
        for _ in range(passes // batch):
            yield draw(batch, generator)

    def validation(self, count: int) -> Batches:
        """See `Source`."""
        yield draw(count, torch.Generator().manual_seed(10_000))

    def tests(self, seed: int, count: int, size: tuple[int, int]) -> Batches:
        """Of the one size that there is."""
        yield draw(count, torch.Generator().manual_seed(20_000 + seed))


def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images `[count, 3, pixels, pixels]` and their classes."""
    cells = draw_cells(count, generator)
    (red, green, blue) = (torch.stack([c // SIDE, c % SIDE], dim=1) for c in cells.unbind(1))
    labels = 2 * (red[:, 0] < green[:, 0]).long() + (red[:, 1] < blue[:, 1]).long()
    images = torch.zeros(count, 3, SIDE * SIDE)
    images.scatter_(2, cells[:, :, None], 1.0)
    images = images.view(count, 3, SIDE, SIDE)
    return images.repeat_interleave(CELL, 2).repeat_interleave(CELL, 3), labels


def draw_cells(count: int, generator: torch.Generator) -> Tensor:
    """Places `[count, 3]`: three cells, red in no row of green and in no column of blue."""
    kept = torch.empty(0, 3, dtype=torch.long)
    while len(kept) < count:
        drawn = torch.randint(SIDE * SIDE, (2 * count, 3), generator=generator)
        red, green, blue = drawn.unbind(1)
        fits = (red // SIDE != green // SIDE) & (red % SIDE != blue % SIDE) & (green != blue)
        kept = torch.cat([kept, drawn[fits]])
    return kept[:count]


def probe(encoding: str, seed: int, tier: Tier = TIERS["cpu"]) -> tuple[int, int]:
    """Images classified correctly and images, after a training of the tier's length."""
    torch.set_num_threads(1)
    small = replace(
        tier,
        vit=tier.vit
        | {"patch_size": CELL, "in_chans": 3, "embed_dim": 64, "depth": 2}
        | {"num_heads": 4, "mlp_ratio": 2, "weight_init": "moco"},
        pixels=SIDE * CELL,
        passes=tier.cells,
        batch=32,
        rate=2e-3,
        device="cpu",
        autocast=False,
    )
    options = {"beside": False, "readout": "mean", "seed": seed, "rate": RATE}
    model = train(small, Cells(), encoding, **options)
    return count_right(small, model, Cells().tests(seed, TESTS, (small.pixels,) * 2))
