"""Memory, pickles and copies of what is remembered."""

import copy
import gc
import pickle
import weakref

import pytest
import tiny_vit
import torch
from cached_encodings import ENCODINGS, LAYOUT, build, fresh, output, qkv

import posenc
from posenc.memo import Memo


def filled(name="swin"):
    encoding = build(name)
    output(encoding)
    return encoding


FORGET = {
    "train": lambda encoding: encoding.train(),
    "eval": lambda encoding: encoding.eval(),
    "to": lambda encoding: encoding.to(torch.float64),
    "load": lambda encoding: encoding.load_state_dict(encoding.state_dict()),
}


@pytest.mark.parametrize("how", FORGET)
def test_memory_is_released(how):
    gc.collect()
    start = Memo.held_bytes
    encoding = filled()
    q, k, _ = qkv()
    with torch.no_grad():
        held = weakref.ref(encoding(q, k, LAYOUT)[0].memo.get(("mask", torch.float32)))
    assert Memo.held_bytes > start
    assert held() is not None
    FORGET[how](encoding)
    assert held() is None
    assert Memo.held_bytes == start


def test_memory_is_released_with_the_module():
    gc.collect()
    start = Memo.held_bytes
    encoding = filled()
    assert Memo.held_bytes - start == 2 * 13 * 13 * 4  # heads, N, N, float32
    del encoding
    assert Memo.held_bytes == start


def test_a_new_bias_replaces_the_old_one():
    gc.collect()
    start = Memo.held_bytes
    encoding = filled()
    held = Memo.held_bytes
    for _ in range(3):
        encoding.table.data.add_(1.0)
        output(encoding)
    assert Memo.held_bytes == held > start


@pytest.mark.parametrize("name", ENCODINGS)
def test_never_pickled(name):
    encoding = build(name)
    size = len(pickle.dumps(encoding))
    expected = output(encoding)
    data = pickle.dumps(encoding)
    assert len(data) == size
    assert torch.equal(output(pickle.loads(data)), expected)


def test_never_pickled_with_a_model():
    model = posenc.patch_model(tiny_vit.vit(), "swin+human_part", share=True)
    size = len(pickle.dumps(model))
    with torch.no_grad():
        model(tiny_vit.images(model))
    assert len(pickle.dumps(model)) == size


@pytest.mark.parametrize("name", ENCODINGS)
def test_never_copied(name):
    gc.collect()
    encoding = filled(name)
    held = Memo.held_bytes
    clone = copy.deepcopy(encoding)
    assert Memo.held_bytes == held
    next(clone.parameters()).data.add_(0.5)
    assert torch.equal(output(clone), fresh(clone))
    assert torch.equal(output(encoding), fresh(encoding))
