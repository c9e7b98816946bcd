"""The way back: the model as it was, bit for bit."""

import pytest
import torch
from patch_cases import train
from random_encodings import SILENT, randomize_encodings
from tiny_vit import MODELS, images, snapshot, vit

import posenc
from posenc import patch_model, unpatch_model


@pytest.mark.parametrize("case", ["cls", "no_prefix", "parallel_scaling", "parallel_things"])
@pytest.mark.parametrize("name", [*SILENT, "peg+irpe+learned"])
@pytest.mark.parametrize("share", [False, True])
def test_unpatch_is_bit_exact(name, case, share):
    model = vit(**MODELS[case][0])
    x = images(model)
    expected, before = model(x), snapshot(model)
    each = {n: SILENT[n] for n in name.split("+")}
    randomize_encodings(patch_model(model, name, share=share, **each))
    with torch.no_grad():
        model(x)
    assert unpatch_model(model) is model
    assert snapshot(model) == before
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("absolute", ["keep", "hide"])
def test_unpatch_after_training_keeps_the_trained_weights(absolute):
    model, twin = vit(5), vit(5)
    table = model.pos_embed.clone()
    before = {**snapshot(model), "values": None}
    patch_model(model, "peg+irpe+learned", absolute=absolute)
    model.train()
    train(model)
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert torch.equal(model.pos_embed, table) == (absolute == "hide")
    unpatch_model(model.eval())
    assert {**snapshot(model), "values": None} == before
    twin.load_state_dict(model.state_dict())
    x = images(model)
    assert torch.equal(model(x), twin(x))


def test_unpatch_restores_flags():
    model = vit()
    model.blocks[0].attn.fused_attn = False
    model.pos_embed.requires_grad_(False)
    before = snapshot(model)
    patch_model(model, "irpe+learned", absolute="hide")
    assert model.blocks[0].attn.fused_attn is True
    unpatch_model(model)
    assert snapshot(model) == before


def test_unpatch_refuses_a_changed_class():
    model = patch_model(vit())
    model.blocks[1].attn.__class__ = type("Wrapped", (type(model.blocks[1].attn),), {})
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"blocks.1.attn is a Wrapped, not the class"):
        unpatch_model(model)
    assert snapshot(model) == before


def test_blocks_that_are_gone():
    """timm's own pruning, as for feature extraction."""
    model, twin = vit(depth=3), vit(depth=3)
    patch_model(model, "peg+swin", after=(0, 2))
    for each in (model, twin):
        each.prune_intermediate_layers([1], prune_norm=False)
    assert len(model.blocks) == 2
    assert "blocks.2.attn" not in str(posenc.summary(model))
    unpatch_model(model)
    assert snapshot(model) == {**snapshot(twin), "identities": snapshot(model)["identities"]}


def test_unpatch_refuses_an_unpatched_model():
    with pytest.raises(ValueError, match=r"VisionTransformer is not patched; call posenc.patch_"):
        unpatch_model(vit())
