"""The encodings compared, and what each does at a size that it was not trained at."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import nn

import posenc

READOUTS = {"CLS": "token", "mean": "avg"}  # what the classifier reads -> timm's global_pool


@dataclass(frozen=True)
class Contender:
    """An encoding with its options; at another size its own rule, and the other that it offers."""

    encoding: str
    rule: str
    options: dict[str, Any] = field(default_factory=dict)
    other: dict[str, Any] = field(default_factory=dict)  # options of the other rule
    other_rule: str = ""


_COUNTED = "places are counted, and go on beyond those of the training"
_SCALED = "places keep the range of the training"
_OFFSETS = "offsets in patches, and go on beyond those of the training"
_TABLE = "the table of offsets is resampled, in geometric spacing"

CONTENDERS = {
    "none": Contender("none", "nothing to do"),
    "learned": Contender(
        "learned",
        "the table is resampled, bicubic with antialias",
        other={"policy": "hf"},
        other_rule="bicubic without antialias",
    ),
    "sinusoidal": Contender("sinusoidal", _COUNTED),
    "peg": Contender("peg", "a convolution, the same at every size"),
    "swin": Contender("swin", _TABLE),
    "cpb": Contender(
        "cpb",
        "offsets relative to the grid",
        other={"pretrained": True},  # the grid of the training: see `options`
        other_rule="offsets in patches, extrapolated by the network",
    ),
    "irpe": Contender("irpe", "buckets of offsets, the last for all that are far"),
    "decomposed": Contender("decomposed", "tables of rows and columns are resampled, linearly"),
    "quadratic": Contender("quadratic", _OFFSETS),
    "rope": Contender("rope", _COUNTED, other={"resize": "scale"}, other_rule=_SCALED),
    "rope(dinov3)": Contender(
        "rope",
        _SCALED,
        {"convention": "dinov3"},
        other={"convention": "dinov3", "resize": "extrapolate"},
        other_rule=_COUNTED,
    ),
    "rope_mixed": Contender("rope_mixed", _COUNTED, other={"resize": "scale"}, other_rule=_SCALED),
    "liere": Contender("liere", _COUNTED, other={"resize": "scale"}, other_rule=_SCALED),
    "alibi_2d": Contender("alibi_2d", _OFFSETS),
    "fire_2d": Contender("fire_2d", "distances relative to the grid"),
    "lookhere": Contender("lookhere", _OFFSETS),
    "convit": Contender("convit", _OFFSETS),
    "pape": Contender("pape", _OFFSETS),
}


def add_encoding(
    vit: VisionTransformer, name: str, *, beside: bool = False, by_other_rule: bool = False
) -> nn.Module:
    """Patches a model with a contender, alone or beside a learned table that starts at zero."""
    contender = CONTENDERS[name]
    options = contender.other if by_other_rule else contender.options
    if options.get("pretrained") is True:
        options = {**options, "pretrained": tuple(vit.patch_embed.grid_size)}
    encoding = contender.encoding
    with warnings.catch_warnings():
        # Some act from the start, which is what a model trained from nothing wants.
        warnings.filterwarnings("ignore", message="posenc: the patched model gives other outputs")
        if beside:
            return posenc.patch_model(vit, f"learned+{encoding}", **{encoding: options})
        return posenc.patch_model(vit, encoding, **options)
