"""ConViT's gated positional attention: facebookresearch/convit, and timm's models of it."""

from __future__ import annotations

from posenc.patching.reference.source import INDICES, Need, Row, Source, always

CONVIT = Source(
    name="convit",
    needs=always(Need("convit")),
    rows=(
        Row(r"(?P<site>.+)\.pos_proj\.weight", "convit", "weight"),
        Row(r"(?P<site>.+)\.gating_param", "convit", "gate"),
    ),
    example="blocks.0.attn.pos_proj.weight",
    left_out=(
        INDICES,
        r"cls_token|pos_embed",
        r"(patch_embed|norm|head)\..*",
        r"blocks\.\d+\.(norm1|norm2|mlp|attn\.(qk|v|qkv|proj))\..*",
        r".+\.pos_proj\.bias",  # which softmax does not see
    ),
    constants={("convit", "strength"): 1.0},
)
