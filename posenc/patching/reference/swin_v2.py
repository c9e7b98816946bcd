"""Swin V2's networks and scales: microsoft/Swin-Transformer, and timm's models of it."""

from __future__ import annotations

from posenc.patching.reference.source import INDICES, Need, Row, Source, always, reshaped
from posenc.patching.reference.swin import LAYERS

_SITE = r"(?P<site>.+)\."

SWIN_V2 = Source(
    name="swin_v2",
    needs=always(Need("cpb"), Need("cosine")),
    rows=(
        Row(_SITE + r"cpb_mlp\.0\.weight", "cpb", "hidden_weight"),
        Row(_SITE + r"cpb_mlp\.0\.bias", "cpb", "hidden_bias"),
        Row(_SITE + r"cpb_mlp\.2\.weight", "cpb", "head_weight"),
        Row(_SITE + r"logit_scale", "cosine", "log_scale", reshaped),
    ),
    example="layers.0.blocks.0.attn.cpb_mlp.0.weight",
    left_out=(INDICES, *LAYERS, r"layers\.\d+\.blocks\.\d+\.attn\.[qkv]_bias"),
    advice="the width of the hidden layer is hidden=",
)
