"""posenc.clear_cache: after it nothing is held, and models that are in use go on."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from random_encodings import randomize_encodings
from tiny_vit import images, vit

import posenc
from posenc import memo
from posenc.memo import Memo

NAMES = ["swin", "irpe", "quadratic", "human_part", "learned", "sinusoidal", "peg"]


@pytest.fixture(autouse=True)
def empty():
    """Each test starts with nothing remembered by others that are gone."""
    gc.collect()
    posenc.clear_cache()


def patched(name):
    options = {"strength": 0.0} if name in ("quadratic", "sinusoidal") else {}
    return randomize_encodings(posenc.patch_model(vit(), name, **options))


def run(model):
    with torch.no_grad():
        return model(images(model))


def held():
    return len(memo._entries), sum(memo._sizes.values()), Memo.held_bytes


def layout_tensors():
    return [t for value in memo._entries.values() for t in memo._tensors(value)]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_held_for_a_model_that_is_gone(name):
    start = Memo.held_bytes
    model = patched(name)
    run(model)
    kept = [weakref.ref(tensor) for tensor in layout_tensors()]
    if name not in ("learned", "peg"):
        assert kept
    del model
    gc.collect()
    assert Memo.held_bytes == start  # finished biases went with their encodings
    posenc.clear_cache()
    gc.collect()
    assert held() == (0, 0, 0)
    assert [ref for ref in kept if ref() is not None] == []


def test_finished_biases_of_living_models_are_freed_too():
    model = patched("swin")
    expected = run(model)
    assert Memo.held_bytes == 2 * 2 * 16 * 16 * 8  # blocks, heads, N, N, float64
    terms = [e._static._entry[2] for e in posenc.patched_encodings(model).values()]
    biases = [weakref.ref(v) for (term,) in terms for v in term.memo._values.values()]
    assert len(biases) == 2
    del terms
    posenc.clear_cache()
    assert held() == (0, 0, 0)
    assert [bias for bias in biases if bias() is not None] == []
    assert torch.equal(run(model), expected)
    assert Memo.held_bytes == 2 * 2 * 16 * 16 * 8
    model.train()
    gc.collect()
    assert Memo.held_bytes == 0  # what was freed is not released twice


def test_a_model_may_go_after_its_memory_was_freed():
    model = patched("swin")
    run(model)
    posenc.clear_cache()
    del model
    gc.collect()
    assert held() == (0, 0, 0)


@pytest.mark.parametrize(
    "twin", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_a_copy_of_a_memo_holds_nothing(twin):
    first = Memo()
    first.keep("bias", torch.ones(4))
    other = twin(first)
    assert other.get("bias") is None
    other.keep("bias", torch.ones(8))
    assert Memo.held_bytes == 12 * 4
    del first
    assert Memo.held_bytes == 8 * 4
    posenc.clear_cache()
    assert Memo.held_bytes == 0
    del other
    assert Memo.held_bytes == 0


def test_a_budget_that_was_freed_may_be_used_again(monkeypatch):
    monkeypatch.setattr(Memo, "LIMIT_BYTES", 16)
    first, second = Memo(), Memo()
    first.keep("bias", torch.ones(4))
    second.keep("bias", torch.ones(4))
    assert second.get("bias") is None
    posenc.clear_cache()
    second.keep("bias", torch.ones(4))
    assert second.get("bias") is not None
    assert first.get("bias") is None


def test_the_limits_are_documented():
    assert (memo.LIMIT_BYTES, Memo.LIMIT_BYTES) == (512 * 2**20, 256 * 2**20)
    assert all(limit in posenc.clear_cache.__doc__ for limit in ("512 MiB", "256 MiB"))
