"""What a context of captured attention leaves alone."""

import contextlib
import copy
import io
import pickle

import oracles
import pytest
import torch
from capture_cases import NAMES, assert_close, patched, some_models
from expected_bias import BIAS
from patched_vit import assert_same
from tiny_vit import images, snapshot, vit

import posenc
from posenc import patched_encodings, unpatch_model
from posenc.analysis import capture_attention


def training_run(model, context):
    """Loss, gradients and random state of a step in training, with dropout."""
    torch.manual_seed(3)
    model.train().zero_grad()
    with context():
        loss = model(images(model)).square().mean()
        loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), "state": torch.get_rng_state(), **gradients}


DROPOUT = {"attn_drop_rate": 0.3, "proj_drop_rate": 0.3, "drop_path_rate": 0.3}


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("encoding", [None, "peg", *BIAS])
def test_training_is_bit_identical(encoding, fused, autocast):
    model = patched(encoding, vit(**DROPOUT, dtype=torch.float32))
    for block in model.blocks:
        block.attn.fused_attn = fused or encoding in BIAS
    runs = []
    for context in (contextlib.nullcontext, lambda: capture_attention(model)):
        # One autocast each: the casts that it remembers would reach the second run.
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            runs.append(training_run(model, context))
    expected, actual = runs
    assert_same(actual, expected)
    assert any(value.any() for name, value in actual.items() if "qkv" in name)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("encoding", [None, "irpe"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_activation_checkpointing_is_bit_identical(encoding, dynamic, reentrant, monkeypatch):
    monkeypatch.setenv("TIMM_REENTRANT_CKPT", str(int(reentrant)))
    model = patched(encoding, vit(**DROPOUT, dynamic_img_size=dynamic))
    expected = training_run(model, contextlib.nullcontext)
    model.set_grad_checkpointing()
    assert_same(training_run(model, lambda: capture_attention(model)), expected)


def test_replays_are_not_recorded():
    model = patched("irpe").train()
    model.set_grad_checkpointing()
    with capture_attention(model) as captured:
        loss = model(images(model, seed=1)).sum()
        model(images(model, seed=2))
        kept = dict(captured.attention)
        loss.backward()
    assert all(captured.attention[name] is kept[name] for name in NAMES)


@some_models
def test_afterwards_the_model_is_as_it_was(encoding):
    model = patched(encoding)
    before = snapshot(model)
    x = images(model)
    observers = [m._posenc.observers for m in model.modules() if "_posenc" in vars(m)]
    with torch.no_grad(), capture_attention(model):
        model(x)
        assert {**snapshot(model), "classes": None} == {**before, "classes": None}
    assert snapshot(model) == before
    with pytest.raises(ZeroDivisionError, match="by zero"), capture_attention(model):
        1 / (model(x).shape[0] - len(x))
    assert snapshot(model) == before
    with pytest.raises(AssertionError, match="Input width"), capture_attention(model):
        model(x[..., :-4])
    assert snapshot(model) == before
    after = [m._posenc.observers for m in model.modules() if "_posenc" in vars(m)]
    assert after == observers
    assert not any(observers)


@some_models
def test_nothing_is_recorded_before_and_after(encoding):
    model = patched(encoding)
    x = images(model)
    with torch.no_grad():
        model(x)
        with capture_attention(model) as captured:
            assert captured.attention == {}
            assert captured.layouts == {}
        model(x)
    assert captured.attention == {}


@some_models
def test_random_numbers_are_left_alone(encoding):
    model = patched(encoding)
    state = torch.get_rng_state()
    with torch.no_grad(), capture_attention(model):
        model(images(model))
    assert torch.equal(torch.get_rng_state(), state)


def by_deepcopy(model):
    return copy.deepcopy(model)


def by_pickle(model):
    return pickle.loads(pickle.dumps(model))


def by_file(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("make", [by_deepcopy, by_pickle, by_file])
@some_models
def test_copies_made_inside_neither_record_nor_differ(encoding, make):
    model = patched(encoding)
    before, x = snapshot(model), images(model)
    with torch.no_grad(), capture_attention(model) as captured:
        outputs = model(x)
        kept = dict(captured.attention)
        twin = make(model)
        assert torch.equal(twin(x), outputs)
        assert not any(m._posenc.observers for m in twin.modules() if "_posenc" in vars(m))
    assert all(captured.attention[name] is kept[name] for name in NAMES)
    same = {**snapshot(twin), "identities": None}
    assert same == {**before, "identities": None}
    with torch.no_grad(), capture_attention(twin) as own:
        assert torch.equal(twin(x), outputs)
    assert_same(own.attention, captured.attention)
    if encoding is not None:
        unpatch_model(twin)
        assert not any("Posenc" in type(module).__name__ for module in twin.modules())


@some_models
def test_contexts_can_be_nested(encoding):
    model = patched(encoding)
    before, x = snapshot(model), images(model)
    with torch.no_grad(), capture_attention(model) as outer:
        with capture_attention(model) as inner:
            model(x)
        assert_same(outer.attention, inner.attention)
        model(images(model, seed=2))
    assert snapshot(model) == before
    assert not torch.equal(outer.attention[NAMES[0]], inner.attention[NAMES[0]])
    assert list(outer.bias) == list(inner.bias)


def test_a_frozen_model_is_recorded():
    model = patched("swin+human_part").eval()
    x = images(model)
    with torch.no_grad():
        with capture_attention(model) as expected:
            model(x)
        posenc.fold_biases(model)
        with capture_attention(model) as captured:
            model(x)
    for name in NAMES:
        assert_close(captured.attention[name], expected.attention[name])
        assert_close(captured.bias[name], expected.bias[name])


def test_a_shared_encoding_and_every_backend():
    x = images(vit())
    for backend in ("reference", "sdpa", "lowrank", "tiled", "auto"):
        model = patched("swin", share=True, backend="auto" if backend == "lowrank" else backend)
        with torch.no_grad():
            outputs = model(x)
            with capture_attention(model) as captured:
                assert torch.equal(model(x), outputs)
        bias = oracles.swin_bias(patched_encodings(model)["swin"].table, 3, 5, 1)
        assert_close(captured.bias[NAMES[1]], bias.detach())
