"""Tiny timm models with windows or stages, random weights.

`CASES` names every model; a case tells which attention modules posenc should patch, with their
layouts and heads, and which it should leave alone. Images are rectangular wherever the family
allows it, and windows too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import oracles
import torch
import windowed_models as models
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.swin_transformer_v2_cr import SwinTransformerV2Cr
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True)
class Expected:
    """What a site sees: its layout (height, width, prefix), its heads and their width."""

    layout: tuple[int, int, int]
    num_heads: int
    head_dim: int


@dataclasses.dataclass(frozen=True)
class Case:
    """A tiny model.

    Args:
        make: builds it, with its own initialization.
        image: height and width.
        sites: attention module -> what it sees.
        others: attention modules that call SDPA and should not be patched -> why.
        scale: of its attention, where that is not `head_dim ** -0.5`.
    """

    make: Callable[[], nn.Module]
    image: tuple[int, int]
    sites: dict[str, Expected]
    others: dict[str, str] = dataclasses.field(default_factory=dict)
    scale: float | None = None


_GSA = "keys are fewer than queries (sr_ratio > 1)"
_POOLED = "its first block of a stage pools the queries"
_UNROLLED = "mask units lie in unrolled order, which is not row-major"

# Two MaxViT blocks in the second stage, windows of 2x3 and dilated grids of 4x2.
_MAXVIT_STAGE = {
    "stages.1.blocks.0.attn_block.attn": Expected((2, 3, 0), 4, 8),
    "stages.1.blocks.0.attn_grid.attn": Expected((4, 2, 0), 4, 8),
    "stages.1.blocks.1.attn_block.attn": Expected((2, 3, 0), 4, 8),
    "stages.1.blocks.1.attn_grid.attn": Expected((4, 2, 0), 4, 8),
}

CASES = {
    # 6x10 patches, then 3x5: padded, and shifted in every second block.
    "swin": Case(
        models.swin,
        (12, 20),
        {
            "layers.0.blocks.0.attn": Expected((2, 4, 0), 2, 4),
            "layers.0.blocks.1.attn": Expected((2, 4, 0), 2, 4),
            "layers.1.blocks.0.attn": Expected((2, 4, 0), 4, 4),
            "layers.1.blocks.1.attn": Expected((2, 4, 0), 4, 4),
        },
    ),
    # A window that is larger than the stage shrinks to it; heads of a width of their own.
    "swin_small_stage": Case(
        partial(models.swin, window_size=((3, 5), (4, 7)), head_dim=6),
        (12, 20),
        {
            "layers.0.blocks.0.attn": Expected((3, 5, 0), 2, 6),
            "layers.0.blocks.1.attn": Expected((3, 5, 0), 2, 6),
            "layers.1.blocks.0.attn": Expected((3, 5, 0), 4, 6),
            "layers.1.blocks.1.attn": Expected((3, 5, 0), 4, 6),
        },
    ),
    # Windows of 2x4 in images of any size: the masks are made in each forward.
    "swin_dynamic": Case(
        partial(models.swin, dynamic_img_size=True, always_partition=True),
        (16, 28),
        {
            "layers.0.blocks.0.attn": Expected((2, 4, 0), 2, 4),
            "layers.0.blocks.1.attn": Expected((2, 4, 0), 2, 4),
            "layers.1.blocks.0.attn": Expected((2, 4, 0), 4, 4),
            "layers.1.blocks.1.attn": Expected((2, 4, 0), 4, 4),
        },
    ),
    # Cosine attention, written out, with a bias of its own; scores are complete at scale 1.
    "swin_v2": Case(
        partial(models.swin, SwinTransformerV2),
        (12, 20),
        {
            "layers.0.blocks.0.attn": Expected((2, 4, 0), 2, 4),
            "layers.0.blocks.1.attn": Expected((2, 4, 0), 2, 4),
            "layers.1.blocks.0.attn": Expected((2, 4, 0), 4, 4),
            "layers.1.blocks.1.attn": Expected((2, 4, 0), 4, 4),
        },
        scale=1.0,
    ),
    # Fine-tuned at larger windows, which shrink to 3x5 in the second stage; images of any size.
    "swin_v2_pretrained": Case(
        partial(
            models.swin,
            SwinTransformerV2,
            window_size=((3, 5), (4, 7)),
            pretrained_window_sizes=((2, 3), (2, 2)),
            qkv_bias=False,
            dynamic_img_size=True,
        ),
        (12, 20),
        {
            "layers.0.blocks.0.attn": Expected((3, 5, 0), 2, 4),
            "layers.0.blocks.1.attn": Expected((3, 5, 0), 2, 4),
            "layers.1.blocks.0.attn": Expected((3, 5, 0), 4, 4),
            "layers.1.blocks.1.attn": Expected((3, 5, 0), 4, 4),
        },
        scale=1.0,
    ),
    "swin_v2_cr": Case(
        partial(models.swin, SwinTransformerV2Cr),
        (12, 20),
        {
            "stages.0.blocks.0.attn": Expected((2, 4, 0), 2, 4),
            "stages.0.blocks.1.attn": Expected((2, 4, 0), 2, 4),
            "stages.1.blocks.0.attn": Expected((2, 4, 0), 4, 4),
            "stages.1.blocks.1.attn": Expected((2, 4, 0), 4, 4),
        },
        scale=1.0,
    ),
    "davit": Case(
        models.davit,
        (20, 28),
        {
            "stages.0.blocks.0.0.attn": Expected((2, 3, 0), 2, 4),
            "stages.1.blocks.0.0.attn": Expected((2, 3, 0), 4, 4),
        },
    ),
    "davit_named_blocks": Case(
        partial(models.davit, named_blocks=True, channel_attn_v2=True),
        (20, 28),
        {
            "stages.0.blocks.0.spatial_block.attn": Expected((2, 3, 0), 2, 4),
            "stages.1.blocks.0.spatial_block.attn": Expected((2, 3, 0), 4, 4),
        },
    ),
    # Windows and dilated grids of different shapes, channels last.
    "maxvit": Case(
        partial(models.maxxvit, ("M", "M"), (32, 48), window_size=(2, 3), grid_size=(4, 2)),
        (32, 48),
        {
            "stages.0.blocks.0.attn_block.attn": Expected((2, 3, 0), 2, 8),
            "stages.0.blocks.0.attn_grid.attn": Expected((4, 2, 0), 2, 8),
            "stages.1.blocks.0.attn_block.attn": Expected((2, 3, 0), 4, 8),
            "stages.1.blocks.0.attn_grid.attn": Expected((4, 2, 0), 4, 8),
            "stages.1.blocks.1.attn_block.attn": Expected((2, 3, 0), 4, 8),
            "stages.1.blocks.1.attn_grid.attn": Expected((4, 2, 0), 4, 8),
        },
    ),
    # TensorFlow's variant: heads after q, k, v in the channels.
    "maxvit_tf": Case(
        partial(
            models.maxvit_stage,
            rel_pos_type="bias_tf",
            head_first=False,
        ),
        (32, 48),
        _MAXVIT_STAGE,
    ),
    # Channels first, heads first.
    "maxvit_nchw": Case(
        partial(
            models.maxvit_stage,
            use_nchw_attn=True,
            rel_pos_type="mlp",
            rel_pos_dim=4,
        ),
        (32, 48),
        _MAXVIT_STAGE,
    ),
    # The same, heads after q, k, v.
    "maxvit_nchw_tf": Case(
        partial(
            models.maxvit_stage,
            use_nchw_attn=True,
            head_first=False,
        ),
        (32, 48),
        _MAXVIT_STAGE,
    ),
    # ConvNeXt blocks, window from the image size; no window attention, only the grid's.
    "maxxvit": Case(
        partial(
            models.maxxvit,
            ("M", "M"),
            (32, 48),
            conv="convnext",
            partition_ratio=16,
            no_block_attn=True,
            init_values=0.5,
        ),
        (32, 48),
        {
            "stages.0.blocks.0.attn_grid.attn": Expected((2, 3, 0), 2, 8),
            "stages.1.blocks.0.attn_grid.attn": Expected((2, 3, 0), 4, 8),
            "stages.1.blocks.1.attn_grid.attn": Expected((2, 3, 0), 4, 8),
        },
    ),
    # Window and grid side by side, each with half of the width.
    "maxvit_parallel": Case(
        partial(models.maxxvit, ("PM", "C"), (32, 48), window_size=(2, 3)),
        (32, 48),
        {
            "stages.0.blocks.0.attn.attn_block": Expected((2, 3, 0), 2, 8),
            "stages.0.blocks.0.attn.attn_grid": Expected((2, 3, 0), 2, 8),
        },
    ),
    # Whole stages, 3x5 after 6x10; the second stage starts with a pooling block.
    "coatnet": Case(
        partial(models.maxxvit, ("C", "T"), (24, 40)),
        (24, 40),
        {
            "stages.1.blocks.0.attn": Expected((3, 5, 0), 4, 8),
            "stages.1.blocks.1.attn": Expected((3, 5, 0), 4, 8),
        },
    ),
    "coatnet_mlp": Case(
        partial(models.maxxvit, ("T", "T"), (24, 40), rel_pos_type="mlp", rel_pos_dim=4),
        (24, 40),
        {
            "stages.0.blocks.0.attn": Expected((6, 10, 0), 2, 8),
            "stages.1.blocks.0.attn": Expected((3, 5, 0), 4, 8),
            "stages.1.blocks.1.attn": Expected((3, 5, 0), 4, 8),
        },
    ),
    # NesT handles square images and blocks only.
    "nest": Case(
        models.nest,
        (16, 16),
        {
            "levels.0.transformer_encoder.0.attn": Expected((4, 4, 0), 2, 4),
            "levels.0.transformer_encoder.1.attn": Expected((4, 4, 0), 2, 4),
            "levels.1.transformer_encoder.0.attn": Expected((4, 4, 0), 4, 4),
        },
    ),
    # Square windows only; 6x10 patches, then 3x5 (padded to 4x6).
    "twins_svt": Case(
        partial(models.twins, (3, 2)),
        (24, 40),
        {
            "blocks.0.0.attn": Expected((3, 3, 0), 2, 4),
            "blocks.1.0.attn": Expected((2, 2, 0), 4, 4),
            "blocks.1.1.attn": Expected((3, 5, 0), 4, 4),
        },
        {"blocks.0.1.attn": _GSA},
    ),
    "twins_pcpvt": Case(
        partial(models.twins, None),
        (24, 40),
        {
            "blocks.1.0.attn": Expected((3, 5, 0), 4, 4),
            "blocks.1.1.attn": Expected((3, 5, 0), 4, 4),
        },
        {"blocks.0.0.attn": _GSA, "blocks.0.1.attn": _GSA},
    ),
    "pit": Case(
        partial(models.pit, False),
        (24, 40),
        {
            "transformers.0.blocks.0.attn": Expected((5, 9, 1), 2, 4),
            "transformers.0.blocks.1.attn": Expected((5, 9, 1), 2, 4),
            "transformers.1.blocks.0.attn": Expected((3, 5, 1), 4, 4),
        },
    ),
    "pit_distilled": Case(
        partial(models.pit, True),
        (24, 40),
        {
            "transformers.0.blocks.0.attn": Expected((5, 9, 2), 2, 4),
            "transformers.0.blocks.1.attn": Expected((5, 9, 2), 2, 4),
            "transformers.1.blocks.0.attn": Expected((3, 5, 2), 4, 4),
        },
    ),
    # Square windows only; 6x10, then 3x5, padded.
    "tiny_vit": Case(
        models.tiny_vit,
        (48, 80),
        {
            "stages.1.blocks.0.attn": Expected((2, 2, 0), 2, 4),
            "stages.1.blocks.1.attn": Expected((2, 2, 0), 2, 4),
            "stages.2.blocks.0.attn": Expected((3, 3, 0), 4, 4),
        },
    ),
    "visformer": Case(
        models.visformer,
        (64, 96),
        {
            "stage1.0.attn": Expected((8, 12, 0), 2, 2),
            "stage2.0.attn": Expected((4, 6, 0), 2, 8),
            "stage3.0.attn": Expected((2, 3, 0), 2, 16),
        },
    ),
    # As published: no attention in the first stage; and no table of its own.
    "visformer_small": Case(
        partial(models.visformer, attn_stage="011", use_pos_embed=False, init_channels=None),
        (64, 96),
        {
            "stage2.0.attn": Expected((4, 6, 0), 2, 8),
            "stage3.0.attn": Expected((2, 3, 0), 2, 16),
        },
    ),
    "volo": Case(
        models.volo,
        (48, 80),
        {
            "network.2.0.attn": Expected((3, 5, 0), 4, 4),
            "network.2.1.attn": Expected((3, 5, 0), 4, 4),
        },
    ),
    # Two branches with grids of their own.
    "crossvit": Case(
        models.crossvit,
        (48, 80),
        {
            "blocks.0.blocks.0.0.attn": Expected((6, 10, 1), 2, 4),
            "blocks.0.blocks.1.0.attn": Expected((3, 5, 1), 4, 4),
            "blocks.0.blocks.1.1.attn": Expected((3, 5, 1), 4, 4),
            "blocks.1.blocks.0.0.attn": Expected((6, 10, 1), 2, 4),
            "blocks.1.blocks.1.0.attn": Expected((3, 5, 1), 4, 4),
        },
    ),
    "crossvit_scaled": Case(
        partial(models.crossvit, img_scale=(1.0, 0.5), patch_size=(12, 8), img_size=(48, 96)),
        (48, 96),
        {
            "blocks.0.blocks.0.0.attn": Expected((4, 8, 1), 2, 4),
            "blocks.0.blocks.1.0.attn": Expected((3, 6, 1), 4, 4),
            "blocks.0.blocks.1.1.attn": Expected((3, 6, 1), 4, 4),
            "blocks.1.blocks.0.0.attn": Expected((4, 8, 1), 2, 4),
            "blocks.1.blocks.1.0.attn": Expected((3, 6, 1), 4, 4),
        },
    ),
    # 16x24 patches in mask units; row-major only when every unroll is consumed, at 2x3.
    "hiera": Case(
        models.hiera,
        (64, 96),
        {"blocks.5.attn": Expected((2, 3, 0), 8, 4)},
        {
            "blocks.0.attn": _UNROLLED,
            "blocks.1.attn": _POOLED,
            "blocks.2.attn": _POOLED,
            "blocks.3.attn": _UNROLLED,
            "blocks.4.attn": _POOLED,
        },
    ),
    # One unroll is left over at the end, so even the last stage is not row-major.
    "hiera_unrolled": Case(
        partial(models.hiera, stages=(1, 1, 2), q_pool=1),
        (64, 96),
        {},
        {
            "blocks.0.attn": _UNROLLED,
            "blocks.1.attn": _POOLED,
            "blocks.2.attn": _UNROLLED,
            "blocks.3.attn": _UNROLLED,
        },
    ),
    # 8x12 patches, then 4x6 in windows of 3x5 (padded); the last block sees the whole stage.
    "hieradet": Case(
        models.hieradet,
        (32, 48),
        {
            "blocks.0.attn": Expected((4, 4, 0), 1, 4),
            "blocks.1.attn": Expected((4, 4, 0), 1, 4),
            "blocks.3.attn": Expected((3, 5, 0), 2, 4),
        },
        {"blocks.2.attn": _POOLED, "blocks.4.attn": "the grid of a global block is not known"},
    ),
}


def build(name: str, *, seed: int = 0, dtype=torch.float64) -> nn.Module:
    """The model of a case, all weights random, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CASES[name].make()
    return oracles.randomize(model.to(dtype), seed, scale=0.2).eval()


def images(name: str, *, batch: int = 2, seed: int = 1, dtype=torch.float64) -> Tensor:
    """Random images of the case's size."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, 3, *CASES[name].image)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
