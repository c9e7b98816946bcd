"""Every family: a patch without effect equals the model, one with an effect the mathematics."""

from __future__ import annotations

import pytest
import tiny_global
import tiny_stages
import tiny_windowed
import torch
from eager_attention import biased_attention
from expected_bias import BIAS, OPTIONS
from random_encodings import WITH_PREFIX, randomize_encodings

import posenc
from posenc import patch_model, patched_encodings
from posenc.layout import TokenLayout
from posenc.patching.models.known import family_of
from posenc.patching.models.timm import FAMILIES

CASES = {**tiny_global.CASES, **{n: c for n, c in tiny_windowed.CASES.items() if c.sites}}


def build(name, dtype=torch.float64):
    module = tiny_global if name in tiny_global.CASES else tiny_windowed
    return module.build(name, dtype=dtype)


def images(name, batch=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    shape = (batch, 3, *CASES[name].image)
    return torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype)


def backbone_name(site):
    """Sites are named in the backbone; the classifiers around encoders add a name."""
    return site.removeprefix("encoder.")


def test_every_family_has_a_model_here():
    """A row of data for a family is not enough: a model of it must be computed."""
    models = [*map(build, CASES), *(make() for make in tiny_stages.MAKE.values())]
    modules = (module for model in models for module in model.modules())
    built = {family.path for module in modules if (family := family_of(module)) is not None}
    assert {family.path for family in FAMILIES} - built == set()


@pytest.mark.parametrize("name", CASES)
def test_supports_knows_the_sites(name):
    case, report = CASES[name], posenc.supports(build(name))
    assert report, report.reason
    expected = {backbone_name(n): TokenLayout(*e.layout) for n, e in case.sites.items()}
    assert report.layouts == expected
    # Pooling, class attention and the like are outside the blocks.
    assert {n for n in case.others if n in report.sites} == set()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("encoding", OPTIONS)
def test_a_patch_without_effect_is_the_model(name, encoding):
    model, x = build(name), images(name)
    with torch.no_grad():
        expected = model(x)
        patch_model(model, encoding, **OPTIONS[encoding])
        torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)
        posenc.unpatch_model(model)
        assert torch.equal(model(x), expected)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("encoding", OPTIONS)
def test_a_patch_is_the_mathematics(name, encoding):
    """The model's own masks, biases and rotary embedding stay in force: the oracle keeps them."""
    case, model, x = CASES[name], build(name), images(name)
    plain = build(name)
    randomize_encodings(patch_model(model, encoding, **OPTIONS[encoding]))
    found = patched_encodings(model)
    assert sorted(found) == sorted(f"{site}.{encoding}" for site in case.sites)

    def bias(site, q, k):
        if site not in case.sites:
            return 0.0
        scale = case.scale or q.shape[-1] ** -0.5
        return BIAS[encoding](found[f"{site}.{encoding}"], q, case.sites[site].layout, scale)

    with torch.no_grad():
        actual = model(x)
        unpatched = plain(x)
        with biased_attention(plain, bias):
            expected = plain(x)
    assert (expected - unpatched).abs().max() > 1e-6
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", CASES)
def test_gradients_reach_every_parameter(name):
    model = randomize_encodings(patch_model(build(name), "irpe+swin", swin=WITH_PREFIX)).train()
    model(images(name)).square().sum().backward()
    for key, parameter in posenc.encoding_parameters(model):
        assert parameter.grad is not None, key
        assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("name", CASES)
def test_save_and_load(name, tmp_path):
    model, x = randomize_encodings(patch_model(build(name), "irpe+swin")), images(name)
    posenc.save_encodings(model, tmp_path / "encodings.safetensors")
    fresh = posenc.load_encodings(build(name), tmp_path / "encodings.safetensors")
    with torch.no_grad():
        assert torch.equal(fresh(x), model(x))


@pytest.mark.parametrize("name", CASES)
def test_summary_names_the_layouts(name):
    text = str(posenc.summary(patch_model(build(name), "swin")))
    for expected in CASES[name].sites.values():
        assert str(TokenLayout(*expected.layout)) in text


def test_values_of_another_width_cannot_take_a_value_table():
    model = build("vit_diff")
    with pytest.raises(ValueError, match=r"blocks.0.attn: .*value"):
        patch_model(model, "irpe", on="kv")
    assert not posenc.is_patched(model)


def test_staged_models_refuse_what_needs_one_grid():
    model = build("swin")
    for name in ("peg", "learned", "sinusoidal"):
        with pytest.raises(ValueError, match=r"acts on the tokens of one grid, and SwinTransf"):
            patch_model(model, name)
    with pytest.raises(ValueError, match=r"layout=3x5: SwinTransformer has windows or stages"):
        patch_model(model, layout=TokenLayout(3, 5))
    with pytest.raises(ValueError, match="no absolute position table"):
        patch_model(model, absolute="hide")
    assert not posenc.is_patched(model)


def test_attention_without_a_known_grid_is_left_alone_and_named():
    report = posenc.supports(build("twins_svt"))
    assert report.left_alone == {
        "blocks.0.1.attn": "its keys are a summary of the grid, fewer than its queries"
    }
    assert "left out:  blocks.0.1.attn: its keys are a summary" in str(report)


def test_nothing_to_patch_says_why():
    model = tiny_windowed.build("hiera_unrolled")
    assert "unrolled order" in posenc.supports(model).reason
    with pytest.raises(ValueError, match=r"that can be patched \(blocks.0.attn: its tokens lie in"):
        patch_model(model)


def test_own_relative_bias_is_doubled():
    text = str(posenc.summary(patch_model(build("swin"), "irpe")))
    assert "irpe on top of the model's own relative bias" in text
    assert "own positions:  relative bias relative_position_bias_table in 4 modules" in text
