"""Parametrizations of sites and of encodings."""

import copy

import pytest
import torch
from patched_vit import adamw, encoding_names, patched, some_cases, train_step, values
from random_encodings import randomize_encodings
from timm.models.vision_transformer import VisionTransformer
from tiny_vit import images, snapshot, vit
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import register_parametrization, remove_parametrizations

from posenc import patch_model, patched_encodings, unpatch_model


class Double(nn.Module):
    def forward(self, value):
        return 2 * value


SITES = {"": "learned", "blocks.0": "peg", "blocks.0.attn": "irpe"}


def with_extra(site):
    """A model with one more parameter, which nothing reads, right on a site."""
    model = vit()
    model.get_submodule(site).register_parameter("extra", nn.Parameter(torch.ones(3)))
    return model


@pytest.mark.parametrize("site", SITES)
def test_unpatch_refuses_a_site_that_was_parametrised_since(site):
    model = with_extra(site)
    before = snapshot(model)
    randomize_encodings(patch_model(model, SITES[site]))
    x = images(model)
    expected = model(x)
    module = model.get_submodule(site)
    register_parametrization(module, "extra", Double())
    assert torch.equal(model(x), expected)
    wrapped = snapshot(model)
    with pytest.raises(ValueError, match=r"is a Parametrized\w+, not the class .* undo what wrap"):
        unpatch_model(model)
    assert snapshot(model) == wrapped
    remove_parametrizations(module, "extra", leave_parametrized=False)
    assert torch.equal(model(x), expected)
    assert snapshot(unpatch_model(model)) == before


@pytest.mark.parametrize("site", SITES)
def test_a_site_that_was_parametrised_before(site):
    model = with_extra(site)
    x = images(model)
    module = model.get_submodule(site)
    register_parametrization(module, "extra", Double())
    expected, before = model(x), snapshot(model)
    patch_model(model, SITES[site])
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(module.extra, 2 * torch.ones(3))
    randomize_encodings(model)
    assert not torch.allclose(model(x), expected, rtol=1e-3)
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    assert snapshot(unpatch_model(model)) == before
    assert torch.equal(model(x), expected)


@some_cases
def test_weight_norm_inside_a_site_does_not_disturb(case):
    model = vit()
    parametrizations.weight_norm(model.blocks[0].attn.qkv)
    x = images(model)
    expected, before = model(x), snapshot(model)
    patched(case, model)
    parametrizations.weight_norm(model.blocks[1].attn.proj)
    train_step(model.train(), torch.optim.SGD(model.parameters(), lr=0.0))
    unpatch_model(model.eval())
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
    remove_parametrizations(model.blocks[1].attn.proj, "weight")
    assert snapshot(model)["classes"] == before["classes"]


def test_weight_norm_on_an_encoding():
    model = patched("peg+learned")
    x = images(model)
    expected = model(x)
    parametrizations.weight_norm(patched_encodings(model)["blocks.0.peg"], "weight")
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
    names = encoding_names(model)
    assert any(name.endswith("parametrizations.weight.original1") for name in names)
    assert set(names) <= set(model.no_weight_decay())
    before = values(model)
    train_step(model.train(), adamw(model))
    assert not any(torch.equal(model.state_dict()[name], before[name]) for name in names)
    assert type(unpatch_model(model)) is VisionTransformer
