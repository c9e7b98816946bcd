"""The fused kernels on CUDA, or else in Triton's interpreter."""

import math

import hints
import pytest
import torch
from kernel_calls import DEVICE, run, set_tiles
from triton.runtime import interpreter

from posenc.attention.kernels import memory


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch):
    if DEVICE == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        monkeypatch.setattr(interpreter, "_patch_lang_tensor", _with_index)
        # A false promise would be a wrong number on a device, and the interpreter only notes it.
        monkeypatch.setattr(interpreter.TensorHandle, "set_attr", hints.set_attr)


_patch_lang_tensor = interpreter._patch_lang_tensor


def _with_index(tensor, *scope):
    """Triton before 3.8 reads the bounds of loops from arrays of one entry, which NumPy ends."""
    _patch_lang_tensor(tensor, *scope)
    tensor.__index__ = lambda self: self.handle.data.item()


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch):
    """What a kernel does not write is NaN."""
    for module in (memory, run):
        monkeypatch.setattr(module, "empty", poisoned(memory.empty))


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Several of them in each direction, wider than high."""
    if DEVICE == "cpu":
        set_tiles(monkeypatch, 16, 32)


def poisoned(empty):
    def fill(*args, **options):
        result = empty(*args, **options)
        return result.fill_(math.nan) if result.is_floating_point() else result

    return fill


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
