"""Every public function of a model says what it needs, and what it got instead."""

from __future__ import annotations

import numpy
import pytest
from torch import nn

import posenc
from posenc import analysis

THINGS = {
    "None": (None, "NoneType: None"),
    "str": ("vit_tiny_patch16_224", "str: 'vit_tiny_patch16_224'"),
    "class": (nn.Linear, "the class Linear: <class"),
    "state": ({"weight": 1}, "dict: {'weight': 1}"),
    "array": (numpy.zeros((64, 64)), "ndarray: "),
}
FUNCTIONS = {
    "patch_model": posenc.patch_model,
    "unpatch_model": posenc.unpatch_model,
    "is_patched": posenc.is_patched,
    "summary": posenc.summary,
    "set_layout": lambda model: posenc.set_layout(model, 8),
    "fold_biases": posenc.fold_biases,
    "patched_encodings": posenc.patched_encodings,
    "encoding_parameters": posenc.encoding_parameters,
    "encoding_state_dict": posenc.encoding_state_dict,
    "encoding_config": posenc.encoding_config,
    "save_encodings": lambda model: posenc.save_encodings(model, "/nowhere/encodings.safetensors"),
    "train_only_encodings": posenc.train_only_encodings,
    "parameter_groups": lambda model: posenc.parameter_groups(model, lr=0.1, encoding_lr=0.1),
    "capture_attention": lambda model: analysis.capture_attention(model).__enter__(),
    "position_biases": analysis.position_biases,
}


@pytest.mark.parametrize("thing", THINGS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_what_is_no_module(function, thing):
    value, received = THINGS[thing]
    with pytest.raises(TypeError, match=rf"expected a torch.nn.Module, got {received}"):
        FUNCTIONS[function](value)


@pytest.mark.parametrize("thing", THINGS)
def test_loading(thing, tmp_path):
    import tiny_global

    model = posenc.patch_model(tiny_global.build("vit"), "swin")
    posenc.save_encodings(model, tmp_path / "encodings.safetensors")
    with pytest.raises(TypeError, match=r"expected a torch.nn.Module, got "):
        posenc.load_encodings(THINGS[thing][0], tmp_path / "encodings.safetensors")


@pytest.mark.parametrize("thing", THINGS)
def test_supports_reports(thing):
    report = posenc.supports(THINGS[thing][0])
    assert not report
    assert f"not supported: expected a torch.nn.Module, got {THINGS[thing][1]}" in str(report)


@pytest.mark.parametrize("layout", ["3x4", (3, 4), 12])
def test_what_is_no_layout(layout):
    model = nn.MultiheadAttention(8, 2)
    for call in (
        lambda: posenc.patch_model(model, "swin", layout=layout),
        lambda: posenc.supports(model, layout=layout),
        lambda: analysis.capture_attention(model, layout=layout).__enter__(),
    ):
        with pytest.raises(TypeError, match=r"layout must be a posenc.TokenLayout\(height, width"):
            call()
