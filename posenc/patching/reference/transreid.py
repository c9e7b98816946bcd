"""TransReID with a relative bias between patches: SeongSuKim95/TransReID."""

from __future__ import annotations

from posenc.patching.reference.source import (
    INDICES,
    Need,
    Row,
    Source,
    State,
    always,
    renamed,
    transposed,
)

_BACKBONE = "base."


def _backbone(state: State, names: frozenset[str]) -> State:
    """Without the name that the model for re-identification gives its backbone."""
    return renamed((key.removeprefix(_BACKBONE), value) for key, value in state.items())


TRANSREID_RELATIVE = Source(
    name="transreid_relative",
    needs=always(Need("swin", {"prefix_pairs": ("none",)})),
    rows=(
        Row(
            r"(?P<site>blocks\.\d+\.attn)\.relative_position_bias_table",
            "swin",
            "table",
            transposed,
            by_offset=True,
        ),
    ),
    example="base.blocks.0.attn.relative_position_bias_table",
    layers=True,
    # Of training, and a classifier that no forward pass reads.
    left_out=(INDICES, r"fc\..*", r"classifier\..*", r"bottleneck(_patch)?\..*"),
    prepare=_backbone,
    advice="this code has no rule for tables of another grid: create the model with its input size",
)
