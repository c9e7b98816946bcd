import oracles
import pytest
import tiny_windowed
import torch
from layouts import LAYOUTS
from tiny_vit import images, vit
from torch import nn

import posenc
from posenc import NoEncoding, TokenLayout, attend


@pytest.mark.parametrize("layout", LAYOUTS)
def test_attention_is_plain_bit_for_bit(layout):
    layout = TokenLayout(*layout)
    encoding = NoEncoding(layout, 2)
    *leaves, cotangent = oracles.random_qkv(layout.num_tokens)
    leaves = [leaf.requires_grad_() for leaf in leaves]
    q, k, v = leaves
    assert encoding(q, k, layout) == ()
    got = attend(q, k, v, encoding(q, k, layout))
    want = nn.functional.scaled_dot_product_attention(q, k, v)
    assert torch.equal(got, want)
    for mine, theirs in zip(
        torch.autograd.grad(got, leaves, cotangent),
        torch.autograd.grad(want, leaves, cotangent),
        strict=True,
    ):
        assert torch.equal(mine, theirs)


def test_there_is_nothing_to_learn():
    assert dict(NoEncoding(TokenLayout(2, 3, 1), 2).state_dict()) == {}
    model = posenc.patch_model(vit(), "none")
    assert [*posenc.encoding_parameters(model)] == []
    assert "warning" not in str(posenc.summary(model))


def test_a_model_and_its_gradients_stay_bit_for_bit():
    model = vit(num_heads=4, embed_dim=32)
    x = images(model)
    before = grads(model, x)
    after = grads(posenc.patch_model(model, "none"), x)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def grads(model, x):
    out = model(x)
    return [out, *torch.autograd.grad(out.square().sum(), [*model.parameters()])]


def test_models_with_windows_and_stages_take_it_too():
    model = tiny_windowed.build("swin", dtype=torch.float64)
    x = torch.rand(2, 3, *tiny_windowed.CASES["swin"].image, dtype=torch.float64)
    with torch.no_grad():
        before = model(x)
        posenc.patch_model(model, "none")
        assert posenc.is_patched(model)
        torch.testing.assert_close(model(x), before, rtol=1e-12, atol=1e-12)


def test_files_and_configs_name_it(tmp_path):
    config = posenc.encoding_config(posenc.patch_model(vit(), "none"))
    again = posenc.patch_from_config(vit(), config)
    assert posenc.encoding_config(again) == config
    posenc.save_encodings(again, tmp_path / "none.safetensors")
    loaded = posenc.load_encodings(vit(), tmp_path / "none.safetensors")
    assert posenc.encoding_config(loaded) == config


@pytest.mark.parametrize("word", ["nope", "NoPE", "baseline", "identity"])
def test_what_others_call_it_is_a_hint(word):
    with pytest.raises(ValueError, match=rf"unknown encoding '{word}'. Did you mean 'none'\?"):
        posenc.create_encoding(word, layout=TokenLayout(2, 3), num_heads=2)


def test_refuses_options_and_bad_sizes():
    with pytest.raises(ValueError, match=r"none has no option 'strength'.*Its options: none"):
        posenc.create_encoding("none", layout=TokenLayout(2, 3), num_heads=2, strength=0.0)
    with pytest.raises(ValueError, match=r"NoEncoding: num_heads must be a positive int, got 0"):
        NoEncoding(TokenLayout(2, 3), 0)
