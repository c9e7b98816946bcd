"""Models outside timm, patched with a given layout, against attention written out."""

import copy
import pickle

import pytest
import torch
from beyond_timm import CASES, build, expected_of, inputs, outputs, patch
from expected_bias import OPTIONS
from random_encodings import WITH_PREFIX, randomize_encodings
from torch import nn

import posenc
from posenc import TokenLayout, patch_model, patched_encodings


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("hf_")])
def test_supports_needs_the_layout(name):
    model, case = build(name), CASES[name]
    text = rf"is no model of timm.*{case.sites[0]}, 2 in all.*pass layout=posenc.TokenLayout"
    assert not posenc.supports(model)
    with pytest.raises(ValueError, match=text):
        patch_model(model)
    report = posenc.supports(model, layout=TokenLayout(*case.layout))
    assert report, report.reason
    assert list(report.sites) == case.sites
    assert not posenc.is_patched(model)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("encoding", OPTIONS)
def test_a_patch_without_effect_is_the_model(name, encoding):
    model, x = build(name), inputs(name)
    before = {key: (type(module), set(vars(module))) for key, module in model.named_modules()}
    keys = list(model.state_dict())
    with torch.no_grad():
        expected = outputs(model, x)
        patch(model, name, encoding, **OPTIONS[encoding])
        torch.testing.assert_close(outputs(model, x), expected, rtol=1e-10, atol=1e-10)
        posenc.unpatch_model(model)
        assert torch.equal(outputs(model, x), expected)
    after = {key: (type(module), set(vars(module))) for key, module in model.named_modules()}
    assert after == before
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("encoding", OPTIONS)
def test_a_patch_is_the_mathematics(name, encoding):
    """In eval without gradients, where torch's encoder layers have a fast path."""
    model = randomize_encodings(patch(build(name), name, encoding, **OPTIONS[encoding]))
    assert sorted(patched_encodings(model)) == [f"{s}.{encoding}" for s in CASES[name].sites]
    x = inputs(name)
    with torch.no_grad():
        actual = outputs(model, x)
        assert (actual - outputs(build(name), x)).abs().max() > 1e-6
        expected = expected_of(name, model, encoding)
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", CASES)
def test_gradients_reach_every_parameter(name):
    model = patch(build(name), name, "irpe+swin", swin=WITH_PREFIX).train()
    outputs(randomize_encodings(model), inputs(name)).square().sum().backward()
    for key, parameter in model.named_parameters():
        if "posenc" in key:
            assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("name", CASES)
def test_one_layer_and_one_shared_encoding(name):
    """Modules that were not patched stay themselves; nothing is said of the model's class."""
    model = randomize_encodings(patch(build(name), name, "swin", blocks=[1]))
    assert list(patched_encodings(model)) == [f"{CASES[name].sites[1]}.swin"]
    expected = expected_of(name, model, "swin")
    torch.testing.assert_close(outputs(model, inputs(name)), expected, rtol=1e-8, atol=1e-8)

    model = patch(build(name), name, "swin", share=True)
    assert list(patched_encodings(model)) == ["swin"]
    if name != "open_clip":  # it tells optimizers about its parameters
        assert type(model).__name__ == type(build(name)).__name__
    posenc.unpatch_model(model)
    assert list(model.state_dict()) == list(build(name).state_dict())


@pytest.mark.parametrize("name", CASES)
def test_save_load_copy_and_pickle(name, tmp_path):
    model, x = randomize_encodings(patch(build(name), name, "irpe+swin")), inputs(name)
    posenc.save_encodings(model, tmp_path / "encodings.safetensors")
    fresh = posenc.load_encodings(build(name), tmp_path / "encodings.safetensors")
    copies = (fresh, copy.deepcopy(model), pickle.loads(pickle.dumps(model)))
    with torch.no_grad():
        for other in copies:
            assert torch.equal(outputs(other, x), outputs(model, x))
            assert posenc.is_patched(other)
    posenc.unpatch_model(copies[1])
    assert posenc.is_patched(model)


@pytest.mark.parametrize("name", CASES)
def test_summary(name):
    text = str(posenc.summary(patch(build(name), name, "swin")))
    assert str(TokenLayout(*CASES[name].layout)) in text
    assert f"{', '.join(CASES[name].sites)} <- swin" in text
    assert ("absolute table" in text) == (not name.startswith("torch_") and name != "torch")


@pytest.mark.parametrize("name", ["hf_vit", "open_clip", "torch"])
def test_tokens_outside_attention_are_not_known(name):
    model = build(name)
    for encoding in ("peg", "learned", "sinusoidal", "irpe+peg"):
        with pytest.raises(ValueError, match=r"acts on tokens, and where .* is not known"):
            patch(model, name, encoding)
    with pytest.raises(ValueError, match="no absolute position table"):
        patch(model, name, absolute="hide")
    assert not posenc.is_patched(model)


@pytest.mark.parametrize("name", ["open_clip", "torch"])
def test_a_layout_of_another_number_of_tokens(name):
    model = patch_model(build(name), "swin", layout=TokenLayout(3, 4, 1))
    with pytest.raises(RuntimeError, match=r"got 16 tokens, but its layout 3x4.*pass patch_model"):
        model(inputs(name))


def test_a_model_without_attention():
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"found no model.*with layout=, MultiheadAttention, ViTA"):
        patch_model(model, layout=TokenLayout(3, 5))


def test_timm_s_flag_does_not_matter():
    from timm.layers import set_fused_attn

    set_fused_attn(False)
    try:
        assert posenc.supports(build("torch"), layout=TokenLayout(3, 5, 1))
        patch(build("torch"), "torch", "swin")
    finally:
        set_fused_attn(True)
