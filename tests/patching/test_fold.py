"""posenc.fold_biases: static biases become buffers."""

from __future__ import annotations

import pickle

import pytest
import tiny_global
import tiny_windowed
import torch
from dynamic_vit import build, images
from random_encodings import randomize_encodings

import posenc
from posenc import patch_model
from posenc.layout import TokenLayout


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("names", ["swin", "quadratic", "human_part", "irpe_bias", "swin+irpe"])
def test_folding_keeps_the_outputs(names, share):
    options = {"strength": 0.0} if names == "quadratic" else {}
    if names == "irpe_bias":
        names, options = "irpe", {"mode": "bias"}
    model = randomize_encodings(
        patch_model(tiny_global.build("vit"), names, share=share, **options)
    )
    x = images((3, 5))
    with torch.no_grad():
        expected = model(x)
        assert posenc.fold_biases(model) is model
        torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
        twin = pickle.loads(pickle.dumps(model))
        assert torch.equal(twin(x), model(x))
    left = {name.rpartition(".")[2] for name, _ in posenc.encoding_parameters(model)}
    assert left == ({"table_k"} if names == "swin+irpe" else set())
    assert any("posenc" in key for key, _ in model.named_buffers())
    with pytest.raises(ValueError, match="folded, its tables are gone"):
        posenc.save_encodings(model, "unused")
    model.set_input_size((20, 12))  # timm's own: posenc.set_layout refuses
    with pytest.raises(RuntimeError, match=r"was folded for the layout 3x5 \+ 1 prefix, got 5x3"):
        model(images((5, 3)))
    posenc.unpatch_model(model)
    assert not posenc.is_patched(model)


def test_folding_of_windows_and_of_nothing():
    model = randomize_encodings(patch_model(tiny_windowed.build("swin"), "swin"))
    x = tiny_windowed.images("swin")
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(posenc.fold_biases(model)(x), expected, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="nothing to fold"):
        posenc.fold_biases(patch_model(tiny_global.build("vit"), "irpe"))


def test_folding_takes_the_layout_that_the_model_has_now():
    model = randomize_encodings(patch_model(build(), "swin"))
    with torch.no_grad():
        expected = model(images((5, 3)))
        assert posenc.summary(model).layout == TokenLayout(5, 3, prefix=5)
        posenc.fold_biases(model)
        torch.testing.assert_close(model(images((5, 3))), expected, rtol=1e-12, atol=1e-12)
    assert posenc.summary(model).backend == "inference sdpa, training sdpa"
    with pytest.raises(ValueError, match="folded already"):
        posenc.fold_biases(model)
