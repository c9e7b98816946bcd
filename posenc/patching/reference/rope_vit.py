"""RoPE-ViT, axial and mixed, with and without an absolute table: naver-ai/rope-vit, and timm."""

from __future__ import annotations

from posenc.patching.reference.source import Need, Row, Source, State, renamed, reshaped

_OF_ALL_BLOCKS = ("freqs", "rope.freqs")


def _needs(state: State) -> tuple[Need, ...]:
    if any(key.rpartition(".")[2] == "freqs" for key in state):
        return (Need("rope_mixed", {"order": ("columns",)}),)
    return (Need("rope", {"convention": ("rope_vit",), "strength": (1.0,)}),)


def _by_block(state: State, names: frozenset[str]) -> State:
    """`[2, depth, ...]` as one table for each block."""
    of_all = {key for key, value in state.items() if key in _OF_ALL_BLOCKS and value.dim() > 2}
    rest = [(key, value) for key, value in state.items() if key not in of_all]
    tables = [
        (f"blocks.{block}.attn.freqs", table)
        for key in of_all
        for block, table in enumerate(state[key].unbind(1))
    ]
    return renamed([*rest, *tables])


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
