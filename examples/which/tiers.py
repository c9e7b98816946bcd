"""The sizes of the comparison: for two cores of a CPU, and for a GPU."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Tier:
    """One model, one training, the sizes that it is tested at.

    Attributes:
        name: "cpu" or "gpu".
        vit: arguments of timm's VisionTransformer, but for size, classes and positions.
        pixels: side of the images of the training.
        images: number of training images, of which `passes` are seen, some of them again.
        passes: images seen in a training.
        batch: images of a step.
        rate: the highest learning rate of the model; an encoding has one of `rates` times it.
        rates: those tried for each encoding, in trainings of half the length.
        validation: images that choose the rate; none of them is trained on or tested.
        counts: test images at each multiple of the side.
        wide: test images of each rectangle, 2:1 and 1:2.
        moved: test images that are shifted, and as many cropped.
        cells: training images of the three-cell test.
        device: where it runs.
        autocast: in bfloat16 where that is safe.
    """

    name: str
    vit: dict[str, Any]
    pixels: int
    images: int
    passes: int
    batch: int
    rate: float
    validation: int
    counts: dict[float, int]
    wide: int
    moved: int
    cells: int
    rates: tuple[float, ...] = (1, 5, 25, 125)
    device: str = "cpu"
    autocast: bool = False


TIERS = {
    "cpu": Tier(
        name="cpu",
        vit={"patch_size": 2, "in_chans": 1, "embed_dim": 64, "depth": 4, "num_heads": 4}
        | {"mlp_ratio": 2, "weight_init": "moco"},
        pixels=28,
        images=4_000,
        passes=4_000,
        batch=8,
        rate=2e-3,
        validation=1_000,
        counts={1: 1_500, 1.5: 400, 2: 200, 3: 60, 64 / 14: 24},
        wide=200,
        moved=400,
        cells=8_000,
    ),
    "gpu": Tier(
        name="gpu",
        vit={"patch_size": 16, "embed_dim": 384, "depth": 12, "num_heads": 6},
        pixels=224,
        images=130_000,  # about all of ImageNet-100
        passes=13_000_000,  # 100 epochs of it
        batch=512,
        rate=1e-3,
        validation=5_000,
        counts={1: 5_000, 1.5: 5_000, 2: 5_000, 3: 2_000, 64 / 14: 1_000},
        wide=5_000,
        moved=5_000,
        cells=64_000,
        device="cuda",
        autocast=True,
    ),
}


def smallest(tier: Tier) -> Tier:
    """A rehearsal in seconds: every step of the tier, on a CPU, with a tiny model."""
    tiny = {"embed_dim": 16 * 4, "depth": 2, "num_heads": 4}  # heads as wide as LieRE's blocks
    pixels = 4 * tier.vit["patch_size"]
    return replace(
        tier,
        vit=tier.vit | tiny,
        pixels=pixels,
        images=48,
        passes=48,
        batch=8,
        validation=20,
        counts=dict.fromkeys(tier.counts, 6),
        wide=6,
        moved=6,
        cells=64,
        rates=tier.rates[:2],
        device="cpu",
        autocast=False,
    )
