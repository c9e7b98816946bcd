"""BEiT and BEiT v2: microsoft/unilm, and timm's models of them."""

from __future__ import annotations

from torch import Tensor

from posenc.functional.precision import at_least_float32
from posenc.functional.resample import resample_offsets
from posenc.patching.reference.source import (
    INDICES,
    Grid,
    Need,
    Row,
    Source,
    always,
    transposed,
    without_k,
)


def _spline(table: Tensor, old: Grid, new: Grid) -> Tensor:
    """As the scripts of BEiT for fine-tuning, with an exact ratio (see `posenc.BEiT`)."""
    return resample_offsets(table.to(at_least_float32(table.dtype)), old, new, "cubic")


BEIT = Source(
    name="beit",
    needs=always(Need("beit")),
    rows=(
        Row(
            r"(?P<site>blocks\.\d+\.attn)\.relative_position_bias_table",
            "beit",
            "table",
            transposed,
            by_offset=True,
            resize=_spline,
        ),
        # One for all blocks, in pretraining.
        Row(
            r"(?P<site>)rel_pos_bias\.relative_position_bias_table",
            "beit",
            "table",
            transposed,
            by_offset=True,
            resize=_spline,
        ),
    ),
    example="blocks.0.attn.relative_position_bias_table",
    layers=True,
    renames=((r"\.gamma_(\d)$", r".ls\1.gamma"),),
    left_out=(INDICES, r"mask_token", r"lm_head\..*"),
    prepare=without_k,
)
