"""timm's optimizers: no weight decay for encodings, and the layer decay of their block."""

import copy

import pytest
import torch
from patched_vit import (
    adamw,
    each_case,
    encoding_names,
    patched,
    values,
)
from timm.models import group_parameters
from timm.models.vision_transformer import VisionTransformer
from timm.optim import create_optimizer_v2
from tiny_vit import vit
from torch import nn

import posenc
from posenc import patch_model, unpatch_model


def groups(model, **options):
    """Name of each trained parameter -> its group in timm's optimizer."""
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05, **options)
    by_id = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert len(by_id) == sum(len(group["params"]) for group in optimizer.param_groups)
    named = model.named_parameters()
    return {name: by_id[id(p)] for name, p in named if p.requires_grad}


@pytest.mark.parametrize("layer_decay", [None, 0.5])
@each_case
def test_encodings_have_no_weight_decay(case, layer_decay):
    options = {} if layer_decay is None else {"layer_decay": layer_decay}
    expected = {n: group["weight_decay"] for n, group in groups(vit(), **options).items()}
    assert set(expected.values()) == {0.0, 0.05}
    model = patched(case)
    decay = {name: group["weight_decay"] for name, group in groups(model, **options).items()}
    assert {name: decay.pop(name) for name in encoding_names(model)} == dict.fromkeys(
        encoding_names(model), 0.0
    )
    assert decay == {name: expected[name] for name in decay}


@each_case
def test_a_step_without_gradients_shrinks_the_weights_only(case):
    model = patched(case)
    before, optimizer = values(model), adamw(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in encoding_names(model))
    assert not torch.equal(after["blocks.0.attn.qkv.weight"], before["blocks.0.attn.qkv.weight"])


@each_case
def test_no_weight_decay_is_extended_and_restored(case):
    model = vit()
    original = model.no_weight_decay()
    assert "pos_embed" in original
    patched(case, model)
    assert set(model.no_weight_decay()) == original | set(encoding_names(model))
    assert vit().no_weight_decay() == original
    assert copy.deepcopy(model).no_weight_decay() == model.no_weight_decay()
    unpatch_model(model)
    assert model.no_weight_decay() == original


class OwnVit(VisionTransformer):
    def no_weight_decay(self):
        return {"head.weight"}

    def group_matcher(self, coarse=False):
        return {"stem": r"^cls_token|pos_embed|patch_embed|blocks\.0", "rest": r"^blocks|norm"}


def own_vit():
    model = vit()
    model.__class__ = OwnVit
    return model


def test_the_model_s_own_no_weight_decay_is_extended():
    model = patched("peg+learned", own_vit())
    assert set(model.no_weight_decay()) == {"head.weight", *encoding_names(model)}
    decay = {name: group["weight_decay"] for name, group in groups(model).items()}
    assert (decay["head.weight"], decay["posenc.learned.table"]) == (0.0, 0.0)
    assert (decay["pos_embed"], decay["blocks.0.mlp.fc1.weight"]) == (0.05, 0.05)


@each_case
def test_no_weight_decay_inside_a_wrapper_has_the_backbone_s_names(case):
    wrapper = nn.ModuleDict({"backbone": vit()})
    patched(case, wrapper)
    backbone = wrapper["backbone"]
    names = {f"backbone.{name}" for name in backbone.no_weight_decay() - vit().no_weight_decay()}
    assert names == set(encoding_names(wrapper))


def test_a_wrapper_may_call_the_model_posenc():
    plain, model = patched("peg+learned"), nn.ModuleDict({"posenc": vit()})
    patched("peg+learned", model)
    names = [f"posenc.{name}" for name in encoding_names(plain)]
    assert encoding_names(model) == names
    assert list(posenc.encoding_state_dict(model)) == names


def test_two_models_with_equal_classes_have_their_own_no_weight_decay():
    one, other = patched("swin"), patch_model(vit(), "swin", blocks=[1])
    assert "blocks.0.attn.posenc.swin.table" in one.no_weight_decay()
    assert "blocks.0.attn.posenc.swin.table" not in other.no_weight_decay()
    assert "blocks.1.attn.posenc.swin.table" in other.no_weight_decay()


def neighbor(name):
    """An old parameter of the same layer."""
    return f"{name[:9]}norm1.weight" if name.startswith("blocks.") else "cls_token"


@each_case
def test_layer_decay_of_encodings_is_that_of_their_layer(case):
    expected = {n: g["lr_scale"] for n, g in groups(vit(), layer_decay=0.5).items()}
    scales = [expected[n] for n in ("pos_embed", "cls_token", "blocks.0.norm1.weight")]
    assert scales == [0.125, 0.125, 0.25]
    model = patched(case)
    scale = {name: group["lr_scale"] for name, group in groups(model, layer_decay=0.5).items()}
    for name in encoding_names(model):
        assert scale.pop(name) == scale[neighbor(name)], name
    assert scale == {name: expected[name] for name in scale}


@pytest.mark.parametrize("coarse", [False, True])
@each_case
def test_group_matcher(case, coarse):
    expected = group_parameters(vit(), vit().group_matcher(coarse), reverse=True)
    model = patched(case)
    layers = group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)
    for name in encoding_names(model):
        assert layers.pop(name) == layers[neighbor(name)], name
    assert layers == expected
    unpatch_model(model)
    assert model.group_matcher(coarse) == vit().group_matcher(coarse)


def test_the_model_s_own_group_matcher_is_extended():
    model = patched("peg+learned", own_vit())
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    stem = ["cls_token", "blocks.0.norm1.weight", "blocks.0.posenc.peg.weight"]
    assert {layers[name] for name in [*stem, "posenc.learned.table"]} == {0}
    assert layers["blocks.1.norm1.weight"] == 1
