"""CPVT's and Twins' positional encoding generators: Meituan-AutoML/Twins, and timm's Twins."""

from __future__ import annotations

from posenc.patching.reference.source import Need, Row, Source, always

_SITE = r"(?P<site>pos_block\.\d+)\.proj\.0\."

CPVT = Source(
    name="cpvt",
    needs=always(Need("peg")),
    rows=(Row(_SITE + "weight", "peg", "weight"), Row(_SITE + "bias", "peg", "bias")),
    example="pos_block.0.proj.0.weight",
    left_out=(r"cls_token", r"(patch_embeds|blocks|norm|head)\..*"),
    advice="stages of a pyramid differ in width: pass the keys of one, such as "
    '{k: v for k, v in state.items() if k.startswith("pos_block.0.")}',
)
