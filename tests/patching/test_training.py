"""Patched models in training: gradients, dropout, masks, backends."""

import copy

import oracles
import pytest
import torch
from patch_cases import ALL, train
from random_encodings import SILENT, randomize_encodings
from tiny_vit import eager, images, vit

import posenc
from posenc import patch_model, patched_encodings, unpatch_model


@pytest.mark.parametrize("share", [False, True])
def test_every_new_parameter_gets_a_gradient(share):
    model = vit(5)
    patch_model(model, ALL, share=share, **{n: o for n, o in SILENT.items() if o})
    randomize_encodings(model).train()
    model.forward_features(images(model)).pow(3).sum().backward()  # of all tokens
    for name, parameter in posenc.encoding_parameters(model):
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_encoding_parameters_are_the_models_own():
    model = patch_model(vit(), "peg+irpe")
    ours = dict(posenc.encoding_parameters(model))
    named = dict(model.named_parameters())
    assert list(ours) == [name for name in named if "posenc" in name]
    assert all(named[name] is parameter for name, parameter in ours.items())
    with pytest.raises(ValueError, match=r"is not patched; call posenc.patch_model"):
        posenc.encoding_parameters(vit())


def test_a_frozen_model_trains_only_its_encodings():
    model = vit()
    model.requires_grad_(False)
    patch_model(model, "irpe")
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    train(model.train())
    for key, value in model.state_dict().items():
        assert torch.equal(value, weights[key]) == ("posenc" not in key)


def test_dropout_in_training_follows_the_seed():
    model = patch_model(vit(attn_drop_rate=0.5)).train()
    outputs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outputs.append(model(images(model)))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_attention_masks_of_the_model_are_kept():
    model = randomize_encodings(patch_model(vit(), "swin"))
    x = images(model)
    mask = torch.ones(16, 16, dtype=torch.bool)
    mask[:, 7] = False
    found = patched_encodings(model)

    def bias(name, q, k):
        bias = oracles.swin_bias(found[f"{name}.swin"].table, 3, 5, 1)
        return bias.masked_fill(~mask, -torch.inf)

    expected = eager(model, x, bias)
    out = model.forward_head(model.forward_features(x, attn_mask=mask))
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
def test_backends_agree_in_a_model(backend):
    model = randomize_encodings(patch_model(vit(), "irpe+human_part", backend=backend))
    other = randomize_encodings(patch_model(vit(), "irpe+human_part"))
    x = images(model)
    torch.testing.assert_close(model(x), other(x), rtol=1e-12, atol=1e-12)
    assert posenc.summary(model).backend == backend


def test_a_backend_that_cannot_names_itself():
    with pytest.raises(ValueError, match='backend="sdpa" does not compute this call: ValueLookup'):
        patch_model(vit(), "irpe", on="v", backend="sdpa")
    automatic = patch_model(vit(), "irpe", on="v")
    assert posenc.summary(automatic).backend == "inference tiled, training tiled"


def test_a_deepcopy_of_one_site_is_independent():
    model = randomize_encodings(patch_model(vit(), "swin"))
    attention = copy.deepcopy(model.blocks[0].attn)
    x = torch.randn(1, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = model.blocks[0].attn(x)
    assert torch.equal(attention(x), expected)
    unpatch_model(model)
    assert torch.equal(attention(x), expected)
