"""Activation checkpointing: a replay must use the layout of its own images."""

from __future__ import annotations

import copy

import pytest
import torch
from dynamic_vit import build, images
from random_encodings import randomize_encodings
from torch.utils.checkpoint import checkpoint

import posenc
from posenc import patch_model
from posenc.layout import TokenLayout


def gradients(model, crops, run=None):
    model.zero_grad()
    sum((model if run is None else run)(x).square().sum() for x in crops).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


CROPS = [images((3, 4), seed=1), images((4, 3), seed=2), images((2, 6), seed=3)]


@pytest.mark.parametrize("name", ["vit", "eva", "naflex", "sam"])
@pytest.mark.parametrize("encoding", ["irpe", "swin", "swin+peg", "human_part+learned"])
def test_crops_of_equal_count_replay_with_their_own_layout(name, encoding):
    model = randomize_encodings(patch_model(build(name), encoding)).train()
    expected = gradients(model, CROPS)
    model.set_grad_checkpointing()
    for _ in range(2):
        assert_same(gradients(model, CROPS), expected)
    wrong = gradients(model, CROPS[:1])
    assert any(not torch.allclose(wrong[n], g) for n, g in expected.items())


def test_crops_with_reentrant_checkpointing(monkeypatch):
    model = randomize_encodings(patch_model(build(), "swin")).train()
    crops = [x.requires_grad_() for x in map(torch.clone, CROPS)]
    expected = gradients(model, crops)
    monkeypatch.setattr("timm.models._manipulate.use_reentrant_ckpt", lambda: True)
    model.set_grad_checkpointing()
    assert_same(gradients(model, crops), expected)


def test_the_whole_model_checkpointed():
    model = randomize_encodings(patch_model(build(), "swin")).train()
    expected = gradients(model, CROPS)

    def run(x):
        return checkpoint(model, x, use_reentrant=False)

    assert_same(gradients(model, CROPS, run), expected)
    model.set_grad_checkpointing()  # blocks inside
    assert_same(gradients(model, CROPS, run), expected)


def test_inputs_that_moved_are_an_error_only_where_it_matters():
    """Offloading gives a replay other storages: the count then decides, if it can."""
    model = randomize_encodings(patch_model(build(), "swin")).train()
    expected = gradients(model, CROPS[:1])
    model.set_grad_checkpointing()

    def run(x):
        with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda tensor: tensor):
            return model(x)

    fresh = copy.deepcopy(model)
    assert_same(gradients(fresh, CROPS[:1], lambda x: _offloaded(fresh, x)), expected)
    with pytest.raises(RuntimeError, match=r"does not tell its layout \(seen .* 3x4.*4x3"):
        gradients(model, CROPS[:2], run)


def _offloaded(model, x):
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda tensor: tensor):
        return model(x)


def test_attention_alone_checkpointed_is_an_error_where_it_matters():
    model = randomize_encodings(patch_model(build(), "swin")).train()
    plain = model.blocks[0].attn.forward
    expected = gradients(model, CROPS[:1])

    def replayed(x, **kwargs):
        return checkpoint(plain, x, use_reentrant=False)

    model.blocks[0].attn.forward = replayed
    assert_same(gradients(model, CROPS[:1]), expected)
    with pytest.raises(RuntimeError, match="does not tell its layout"):
        gradients(model, CROPS[:2])


@pytest.mark.slow
def test_compiled_with_checkpointing():
    torch._dynamo.reset()
    model = randomize_encodings(patch_model(build(), "swin")).train()
    expected = gradients(model, CROPS)
    model.set_grad_checkpointing()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_same(gradients(model, CROPS, compiled), expected)


# Compiled in parts: layouts cross from compiled code to eager code and back


def compiled_in_parts(how, model):
    if how == "blocks":
        for block in model.blocks:
            block.compile(backend="aot_eager")
    elif how == "embedding":
        model.patch_embed.compile(backend="eager")
    else:
        model.blocks[0].register_forward_hook(torch._dynamo.disable(lambda *_: None))
        return torch.compile(model, backend="aot_eager")
    return model


@pytest.mark.slow
@pytest.mark.parametrize("how", ["blocks", "embedding", "graph break"])
@pytest.mark.parametrize("encoding", ["irpe", "swin"])
@pytest.mark.filterwarnings("ignore")
def test_crops_of_equal_count_compiled_in_parts(how, encoding):
    torch._dynamo.reset()
    model = randomize_encodings(patch_model(build(), encoding)).train()
    expected = gradients(model, CROPS)
    model.set_grad_checkpointing()
    run = compiled_in_parts(how, model)
    for _ in range(2):
        assert_same(gradients(model, CROPS, run), expected)


def test_chunks_of_one_tensor_are_told_apart():
    model = randomize_encodings(patch_model(build(), "swin")).train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        packed = torch.randn(4, 17, 16, dtype=torch.float64)
    layouts = [TokenLayout(3, 4, prefix=5), TokenLayout(4, 3, prefix=5)]

    def step(replay):
        model.zero_grad()
        loss = 0.0
        for chunk, layout in zip(packed.chunk(2), layouts, strict=True):
            posenc.set_layout(model, layout)
            x = chunk
            for block in model.blocks:
                x = checkpoint(block, x, use_reentrant=False) if replay else block(x)
            loss = loss + x.square().sum()
        loss.backward()
        return {n: p.grad.clone() for n, p in model.blocks.named_parameters()}

    assert_same(step(True), step(False))
