"""iRPE: DeiT models of microsoft/Cream, all their configurations."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from posenc.functional.buckets import num_irpe_buckets
from posenc.patching.reference.source import Need, Row, Source, State

_SITE = r"(?P<site>.+)\.rpe_(?P<target>[qkv])"
_KIND = r"\.lookup_table_(?P<kind>weight|bias)"
_KEY = re.compile(_SITE + r"(\.rp_(?P<axis>rows|cols))?" + _KIND)
_PUBLISHED = {"product": 1.9, "euclidean": 20, "quantized": 33, "cross": 20}


def _needs(state: State) -> tuple[Need, ...]:
    found = [(m, value) for key, value in state.items() if (m := _KEY.fullmatch(key))]
    kinds = {match["kind"] for match, _ in found}
    if len(kinds) > 1:
        raise ValueError(
            "the checkpoint has tables of both modes, lookup_table_weight (contextual) and "
            "lookup_table_bias: an iRPE has one of them"
        )
    targets = {match["target"] for match, _ in found}
    cross = any(match["axis"] for match, _ in found)
    methods = ("cross",) if cross else ("product", "euclidean", "quantized")
    options: dict[str, tuple[Any, ...]] = {
        "mode": ("bias",) if kinds == {"bias"} else ("contextual",),
        "method": methods,
        "on": ("".join(sorted(targets, key="qkv".index)),),
        "share_heads": (all(value.shape[:1] == (1,) for _, value in found),),
    }
    return (Need("irpe", options, _shown(methods, _num_buckets(*found[0]))),)


def _num_buckets(match: re.Match[str], table: Tensor) -> int:
    on_values = match["target"] == "v" and match["kind"] == "weight"
    return table.shape[-2 if on_values else -1] if table.dim() > 1 else 0


def _shown(methods: tuple[str, ...], buckets: int) -> dict[str, Any]:
    """The published method and ratio with so many buckets, perhaps one of them for CLS."""
    for method in methods:
        ratio = _PUBLISHED[method]
        count = num_irpe_buckets("rows" if method == "cross" else method, ratio)
        if buckets in (count, count + 1):
            return {"method": method, "ratio": ratio}
    return {}


IRPE = Source(
    name="irpe",
    needs=_needs,
    rows=(
        Row(_SITE + _KIND, "irpe", "table_{target}"),
        Row(_SITE + r"\.rp_(?P<axis>rows|cols)" + _KIND, "irpe", "table_{target}_{axis}"),
    ),
    example="blocks.0.attn.rpe_k.lookup_table_weight",
    layers=True,
    advice="the number of buckets follows from method= and ratio=, and "
    'prefix_pairs="shared" has one more beside prefix tokens',
)
