"""A rotary encoding in a model: beside the model's own both act, and the user is told."""

import warnings

import pytest
import tiny_global
import torch
from tiny_vit import images, vit

import posenc
from posenc import patch_model

OWN = ["eva_rope", "eva_rope_attention", "eva_rope_mixed", "sam_rope", "naflex_rope"]
MESSAGE = r"posenc: rope on top of the model's own rotary embedding: both act"


def seen(function):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function()
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("name", OWN)
def test_rotary_on_rotary_warns(name):
    model = tiny_global.build(name)
    with pytest.warns(UserWarning, match=MESSAGE):
        patch_model(model, "rope", strength=0)
    assert MESSAGE.removeprefix("posenc: ") in str(posenc.summary(model))
    assert MESSAGE.removeprefix("posenc: ") in str(posenc.summary(posenc.fold_biases(model)))


def test_all_are_named():
    model = tiny_global.build("eva_rope")
    options = {"rope": {"strength": 0}, "rope_mixed": {"strength": 0}}
    (text,) = seen(lambda: patch_model(model, "swin+rope+rope_mixed", **options))
    assert text.startswith("posenc: rope and rope_mixed on top of the model's own rotary embed")
    config = posenc.encoding_config(model)
    assert seen(lambda: posenc.patch_from_config(tiny_global.build("eva_rope"), config)) == [text]


def test_a_warning_as_an_error_leaves_the_model():
    model = tiny_global.build("eva_rope")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match=MESSAGE):
            patch_model(model, "rope", strength=0)
    assert posenc.supports(model)


def test_no_warning_elsewhere():
    assert seen(lambda: patch_model(tiny_global.build("eva_rope"), "irpe+peg")) == []
    assert seen(lambda: patch_model(vit(), "rope", strength=0)) == []
    model = patch_model(vit(), "rope_mixed", strength=0)
    assert posenc.summary(model).warnings == ()
    (text,) = seen(lambda: patch_model(vit(), "rope_mixed"))
    assert "RoPEMixed has an effect from the start (strength=0 starts without)" in text


@pytest.mark.parametrize("name", ["vit", "eva_rope", "eva_rope_mixed"])
def test_both_act(monkeypatch, name):
    """What the model hands to its attention, turned by its own embedding, is turned once more."""
    model, plain = tiny_global.build(name), tiny_global.build(name)
    generator = torch.Generator().manual_seed(0)
    shape = (2, 3, *tiny_global.CASES[name].image)
    x = torch.rand(shape, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        before = plain(x)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            patch_model(model, "rope", convention="croco")
        rope = next(iter(posenc.patched_encodings(model).values()))
        actual = model(x)
        attention = torch.nn.functional.scaled_dot_product_attention

        def turning(q, k, v, *args, **kwargs):
            (turn,) = rope(q, k, rope.layout)
            return attention(turn.apply(q), turn.apply(k), v, *args, **kwargs)

        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", turning)
        expected = plain(x)
    assert (expected - before).abs().max() > 1e-6
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("convention", ["timm", "dinov3"])
def test_other_image_sizes(convention):
    """Counted places go on, normalized ones are spread: each convention's own rule in a model."""
    model = vit(dynamic_img_size=True, pos_embed="none")
    with pytest.warns(UserWarning, match="RoPE has an effect"):
        patch_model(model, "rope", convention=convention)
    larger = vit(dynamic_img_size=True, pos_embed="none", img_size=(16, 28))
    with pytest.warns(UserWarning, match="RoPE has an effect"):
        patch_model(larger, "rope", convention=convention)
    larger.load_state_dict(model.state_dict())
    x = images(larger)
    torch.testing.assert_close(model(x), larger(x), rtol=1e-12, atol=1e-12)
