"""TransReID with a relative bias between patches: SeongSuKim95/TransReID."""

from __future__ import annotations

from posenc.patching.reference.source import INDICES, Need, Row, Source, State, transposed

_BACKBONE = "base."


def _needs(state: State) -> tuple[Need, ...]:
    return (Need("swin", {"prefix_pairs": ("none",)}),)


def _backbone(state: State, names: frozenset[str]) -> State:
    """Without the name that the model for re-identification gives its backbone."""
    return {key.removeprefix(_BACKBONE): value for key, value in state.items()}


TRANSREID_RELATIVE = Source(
    name="transreid_relative",
    needs=_needs,
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
    absolute="bilinear",
    advice="this code has no rule for tables of another grid: create the model with its input size",
)
