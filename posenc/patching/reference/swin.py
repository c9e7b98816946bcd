"""Swin's tables: microsoft/Swin-Transformer, and timm's models of it."""

from __future__ import annotations

from torch import Tensor

from posenc.functional.resample import resample_grid
from posenc.patching.reference.source import INDICES, Grid, Need, Row, Source, always, transposed

# Layers of both versions.
LAYERS = (
    r"absolute_pos_embed",
    r"(patch_embed|norm|head)\..*",
    r"layers\.\d+\.downsample\..*",
    r"layers\.\d+\.blocks\.\d+\.(norm1|norm2|mlp|attn\.qkv|attn\.proj)\..*",
)


def _bicubic(table: Tensor, old: Grid, new: Grid) -> Tensor:
    """As an image of offsets, in the script of Swin for fine-tuning."""
    sides = [(2 * grid[0] - 1, 2 * grid[1] - 1) for grid in (old, new)]
    return resample_grid(table.mT, sides[0], sides[1], antialias=False).mT


SWIN = Source(
    name="swin",
    needs=always(Need("swin", {"prefix_pairs": ("none",)})),
    rows=(
        Row(
            r"(?P<site>.+)\.relative_position_bias_table",
            "swin",
            "table",
            transposed,
            by_offset=True,
            resize=_bicubic,
        ),
    ),
    example="layers.0.blocks.0.attn.relative_position_bias_table",
    left_out=(INDICES, *LAYERS),
)
