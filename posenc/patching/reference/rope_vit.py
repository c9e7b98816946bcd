"""RoPE-ViT, axial and mixed, with and without an absolute table: naver-ai/rope-vit, and timm."""

from __future__ import annotations

from posenc.patching.reference.source import Need, Row, Source, State, reshaped

_OF_ALL_BLOCKS = ("freqs", "rope.freqs")


def _needs(state: State) -> tuple[Need, ...]:
    if any(key.rpartition(".")[2] == "freqs" for key in state):
        return (Need("rope_mixed", {"order": ("columns",)}),)
    return (Need("rope", {"convention": ("rope_vit",), "strength": (1.0,)}),)


def _by_block(state: State, names: frozenset[str]) -> State:
    """`[2, depth, ...]` as one table for each block."""
    split: State = {}
    for key, value in state.items():
        if key in _OF_ALL_BLOCKS and value.dim() > 2:
            tables = enumerate(value.unbind(1))
            split |= {f"blocks.{block}.attn.freqs": table for block, table in tables}
        else:
            split[key] = value
    return split


ROPE_VIT = Source(
    name="rope_vit",
    needs=_needs,
    rows=(Row(r"(?P<site>blocks\.\d+\.attn)\.freqs", "rope_mixed", "freqs", reshaped),),
    example=None,
    layers=True,
    renames=((r"\.gamma_(\d)$", r".ls\1.gamma"),),
    left_out=(r"(.*\.)?freqs_t_[xy]", r"(.*\.)?freqs_cis"),
    prepare=_by_block,
)
