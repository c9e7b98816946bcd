"""What an encoding prints: options that are not the defaults, each under its name."""

import re

import pytest

import posenc
from posenc.registry import encoding_class, needed_sizes

LAYOUT = posenc.TokenLayout(3, 5, prefix=1)
SIZES = {"num_heads": 4, "head_dim": 8, "embed_dim": 32, "block": 1, "num_blocks": 3}
PRINTED = {
    "alibi_2d": ({"distance": "squared", "learnable": True}, ""),
    "body": ({"parts": 3, "adaptive": True}, ""),
    "conv_projection": ({"kernel_size": 5}, "32, "),
    "cordonnier_learned": ({"content": False, "max_offset": 7}, ""),
    "cpb": ({"hidden": 6, "pretrained": (7, 9)}, ""),
    "deberta": ({"clip": 3, "strength": 0.25}, ""),
    "fire_2d": ({"width": 6}, ""),
    "fourier": ({"features": 6, "hidden": 10, "gamma": 0.5}, ""),
    "huang": ({"form": "key", "clip": 3}, ""),
    "human_part": ({"parts": 3, "adaptive": True}, ""),
    "irpe": ({"mode": "bias", "method": "euclidean", "on": "qk", "ratio": 1.5}, ""),
    "kerple_2d": ({"form": "power"}, ""),
    "liere": ({"block_size": 2, "share_heads": True, "resize": "scale"}, ""),
    "local_ffn": ({"kernel_size": 5}, "32, "),
    "lookhere": ({"field_of_view": 180}, ""),
    "lpu": ({"kernel_size": 5}, "32, "),
    "pape": ({"rotation_invariant": True}, "parabolas=1, "),
    "peg": ({"kernel_size": 5}, "32, "),
    "relative_logits": ({"width": 3, "share_heads": False, "prefix_pairs": "shared"}, ""),
    "rope": ({"convention": "dinov3", "strength": 0.5}, ""),
    "rope_mixed": ({"order": "rows", "resize": "scale"}, ""),
    "sasa": ({"window": 3}, ""),
    "shaw": ({"clip": 3, "values": False}, ""),
    "sinusoidal": ({"convention": "detr", "temperature": 100.5, "normalize": True}, ""),
    "t5": ({"num_buckets": 8, "max_distance": 9}, ""),
    "transformer_xl": ({"temperature": 100.5}, ""),
    "tupe": ({"reset": False, "relative": True}, ""),
}


@pytest.mark.parametrize("name", PRINTED)
def test_options_are_printed_by_name(name):
    options, first = PRINTED[name]
    cls = encoding_class(name)
    encoding = cls(LAYOUT, **needed_sizes(cls, SIZES, ""), **options)
    said = first + ", ".join(f"{option}={value}" for option, value in options.items())
    assert repr(encoding).startswith(f"{cls.__name__}({said}")
    usual = repr(cls(LAYOUT, **needed_sizes(cls, SIZES, "")))
    for option, value in options.items():
        assert not re.search(rf"\b{option}={re.escape(str(value))}[,)]", usual)
