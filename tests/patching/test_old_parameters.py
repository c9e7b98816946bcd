"""Old keys and parameters through patch, training and unpatch."""

import torch
from patched_vit import adamw, assert_same, each_case, encoding_names, patched, train_step, values
from tiny_vit import images, snapshot, vit

from posenc import unpatch_model


@each_case
def test_an_optimizer_from_before_the_patch_goes_on(case):
    model = vit().train()
    keys, old = list(model.state_dict()), dict(model.named_parameters())
    optimizer = adamw(model)
    train_step(model, optimizer)
    state = optimizer.state_dict()
    patched(case, model)
    assert [key for key in model.state_dict() if ".posenc." not in f".{key}"] == keys
    after = dict(model.named_parameters())
    assert [name for name in after if name in old] == list(old)
    assert all(after[name] is parameter for name, parameter in old.items())
    ours, weight = values(model), model.blocks[0].attn.qkv.weight.clone()
    train_step(model, optimizer)
    assert not torch.equal(model.blocks[0].attn.qkv.weight, weight)
    assert all(torch.equal(after[name], ours[name]) for name in encoding_names(model))
    adamw(unpatch_model(model)).load_state_dict(state)


@each_case
def test_unpatch_after_training_is_bit_exact(case):
    model = vit()
    before = {**snapshot(model), "values": None}
    patched(case, model).train()
    optimizer = adamw(model)
    for seed in range(2):
        train_step(model, optimizer, seed)
    weights = values(model)
    unpatch_model(model.eval())
    assert {**snapshot(model), "values": None} == before
    assert_same(model.state_dict(), {key: weights[key] for key in model.state_dict()})
    twin = vit(seed=5)
    twin.load_state_dict(model.state_dict())
    x = images(model)
    assert torch.equal(model(x), twin(x))
    optimizers = [adamw(each) for each in (model, twin)]
    for each, optimizer in zip((model, twin), optimizers, strict=True):
        train_step(each.train(), optimizer)
    assert_same(model.state_dict(), twin.state_dict())
