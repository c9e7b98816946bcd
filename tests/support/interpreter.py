"""Triton's interpreter, which runs kernels on the CPU."""

import hints
from triton.runtime import interpreter

_patch_lang_tensor = interpreter._patch_lang_tensor


def repair(monkeypatch):
    """Before 3.8 it reads the bounds of loops from arrays of one entry, which NumPy refuses.

    A false promise to the compiler would be a wrong number on a device, where the interpreter
    only notes it: so each is checked.
    """
    monkeypatch.setattr(interpreter, "_patch_lang_tensor", _with_index)
    monkeypatch.setattr(interpreter.TensorHandle, "set_attr", hints.set_attr)


def _with_index(tensor, *scope):
    _patch_lang_tensor(tensor, *scope)
    tensor.__index__ = lambda self: self.handle.data.item()
