"""What attention modules outside timm receive, convolved: Hugging Face, torch, torchvision."""

from __future__ import annotations

import copy

import oracles
import pytest
import torch
from beyond_timm import CASES, build, inputs, outputs, patch
from random_encodings import randomize_encodings
from timm.layers import Attention
from tiny_vit import vit
from torch import nn

import posenc
from posenc import TokenLayout, patch_model, patched_encodings
from posenc.analysis import capture_attention


def convolve(plain, found, layout):
    """Gives an unpatched model the loops of these encodings, before its attention modules."""
    for name, encoding in found.items():
        module = plain.get_submodule(name.removesuffix(".conv_projection"))
        module.register_forward_pre_hook(_before(encoding, layout), with_kwargs=True)
    return plain


def _before(encoding, layout):
    def loop(x):
        return oracles.peg(x, encoding.weight, encoding.bias, *layout)

    def before(module, args, kwargs):
        if not isinstance(module, nn.MultiheadAttention):
            if args:
                return (loop(args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": loop(kwargs["hidden_states"])}
        x = args[0] if args else kwargs.pop("query")
        x = loop(x) if module.batch_first else loop(x.transpose(0, 1)).transpose(0, 1)
        kwargs = {k: v for k, v in kwargs.items() if k not in ("key", "value")}
        return (x, x, x, *args[3:]), kwargs

    return before


@pytest.mark.parametrize("name", CASES)
def test_equals_the_loop_before_attention(name, tmp_path):
    """The start is the model itself, the way back exact; saved, loaded and copied."""
    model, x = build(name), inputs(name)
    keys = list(model.state_dict())
    with torch.no_grad():
        unpatched = outputs(model, x)
        patch(model, name, "conv_projection")
        found = patched_encodings(model)
        assert [*found] == [f"{site}.conv_projection" for site in CASES[name].sites]
        torch.testing.assert_close(outputs(model, x), unpatched, rtol=0, atol=1e-10)
        actual = outputs(randomize_encodings(model), x)
        expected = outputs(convolve(build(name), found, CASES[name].layout), x)
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
        assert (actual - unpatched).abs().max() > 1e-6
        posenc.save_encodings(model, tmp_path / "saved.safetensors")
        loaded = posenc.load_encodings(build(name), tmp_path / "saved.safetensors")
        for other in (loaded, copy.deepcopy(model)):
            assert torch.equal(outputs(other, x), actual)
        posenc.unpatch_model(model)
        assert torch.equal(outputs(model, x), unpatched)
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize("name", ["hf_vit", "torch_norm_first"])
def test_beside_an_encoding_in_attention(name):
    """In training, with a selection: the plain model has the same encoding, but no convolution."""
    options = {"blocks": [1]}
    model = patch(build(name), name, "irpe+conv_projection", **options)
    model, x = randomize_encodings(model).train(), inputs(name)
    plain = patch(build(name), name, "irpe", **options).train()
    (site,) = posenc.encoding_config(model)["sites"]
    assert site == CASES[name].sites[1]
    found = patched_encodings(model)
    patched_encodings(plain)[f"{site}.irpe"].load_state_dict(found[f"{site}.irpe"].state_dict())
    convolution = found[f"{site}.conv_projection"]
    convolve(plain, {site: convolution}, CASES[name].layout)
    expected = outputs(plain, x)
    wanted = torch.autograd.grad(expected.square().sum(), [*convolution.parameters()])
    actual = outputs(model, x)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    grads = torch.autograd.grad(actual.square().sum(), [*convolution.parameters()])
    for grad, want in zip(grads, wanted, strict=True):
        assert grad.abs().max() > 0
        torch.testing.assert_close(grad, want, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ["hf_vit", "torch"])
def test_captured_attention_is_that_of_convolved_tokens(name):
    model, x = randomize_encodings(patch(build(name), name, "conv_projection")), inputs(name)
    # Patched by an encoding that does nothing: torch's layers would pass over the module else.
    plain = patch(build(name), name, "none")
    convolve(plain, patched_encodings(model), CASES[name].layout)
    with torch.no_grad(), capture_attention(model) as captured, capture_attention(plain) as wanted:
        outputs(model, x)
        outputs(plain, x)
    assert [*captured.attention] == CASES[name].sites
    for site, weights in wanted.attention.items():
        torch.testing.assert_close(captured.attention[site], weights, rtol=1e-9, atol=1e-12)


def test_attention_of_timm_in_another_model():
    torch.manual_seed(0)
    model = nn.Sequential(Attention(8, 2), Attention(8, 2)).double()
    plain, layout = copy.deepcopy(model), (2, 5, 1)
    patch_model(model, "conv_projection", layout=TokenLayout(*layout))
    found, x = patched_encodings(randomize_encodings(model)), torch.randn(2, 11, 8).double()
    torch.testing.assert_close(model(x), convolve(plain, found, layout)(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("encoding", ["lpu", "local_ffn"])
@pytest.mark.parametrize("name", ["hf_vit", "torch"])
def test_tokens_of_blocks_and_mlps_are_not_known(name, encoding):
    model = build(name)
    with pytest.raises(ValueError, match=rf"{encoding} acts on tokens, and where .* is not known"):
        patch(model, name, encoding)
    assert not posenc.is_patched(model)


@posenc.register_attention
class OwnAttention(Attention):
    """Made known, but not the width of its tokens."""


def test_the_width_of_registered_attention_is_not_known():
    model = nn.Sequential(OwnAttention(8, 2), OwnAttention(8, 2))
    message = r"conv_projection cannot act at 0: what the forward of OwnAttention receives is not"
    with pytest.raises(ValueError, match=message):
        patch_model(model, "conv_projection", layout=TokenLayout(2, 5, 1))
    assert not posenc.is_patched(model)


@pytest.mark.parametrize("kind", [{"shape": "b h t n d"}, {"map": "b c h w"}])
def test_registered_attention_of_windows_or_channels_first(kind):
    """In a model of timm, which tells the width of tokens, but not in which order they come."""

    class InOwnOrder(Attention):
        pass

    posenc.register_attention(InOwnOrder, **kind)
    model = vit(attn_layer=InOwnOrder)
    with pytest.raises(ValueError, match=r"blocks.0.attn: what the forward of InOwnOrder receives"):
        patch_model(model, "conv_projection")
    assert not posenc.is_patched(model)


def test_cross_attention_is_refused_in_its_call():
    model = build("torch")
    patch(model, "torch", "conv_projection")
    x = inputs("torch")
    with pytest.raises(ValueError, match="was patched for self-attention"):
        model.layers[0].self_attn(x, x.clone(), x, need_weights=False)
