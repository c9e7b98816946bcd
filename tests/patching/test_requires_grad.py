"""Frozen parameters of the model or of the encodings."""

import pytest
import torch
from patched_vit import adamw, each_case, encoding_names, patched, some_cases, train_step, values
from tiny_vit import vit

from posenc import encoding_parameters, unpatch_model

FROZEN = {
    "nothing": lambda name: False,
    "everything": lambda name: True,
    "first block": lambda name: name.startswith("blocks.0."),
    "table": lambda name: name == "pos_embed",
}


@pytest.mark.parametrize("frozen", FROZEN)
@each_case
def test_requires_grad_survives_patch_and_unpatch(frozen, case):
    model = vit()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not FROZEN[frozen](name))
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    patched(case, model)
    hidden = {"pos_embed": False} if case == "removed" else {}
    now = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert {name: now[name] for name in flags} == {**flags, **hidden}
    assert all(now[name] for name in encoding_names(model))
    unpatch_model(model)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags


@each_case
def test_a_step_with_a_frozen_backbone_changes_every_encoding_and_nothing_else(case):
    model = patched(case).train()
    model.requires_grad_(False)
    for _, parameter in encoding_parameters(model):
        parameter.requires_grad_(True)
    before, optimizer = values(model), adamw(model)
    train_step(model, optimizer)
    changed = [key for key, value in model.state_dict().items() if not value.equal(before[key])]
    assert changed == encoding_names(model)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(changed)


@some_cases
def test_a_step_with_frozen_encodings_leaves_them(case):
    model = patched(case).train()
    for _, parameter in encoding_parameters(model):
        parameter.requires_grad_(False)
    before, optimizer = values(model), adamw(model)
    train_step(model, optimizer)
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in encoding_names(model))
    assert not torch.equal(after["blocks.0.mlp.fc1.weight"], before["blocks.0.mlp.fc1.weight"])


def test_unpatch_does_not_unfreeze_a_hidden_table():
    model = patched("removed")
    model.requires_grad_(False)
    unpatch_model(model)
    assert not any(parameter.requires_grad for parameter in model.parameters())
