"""Triton's interpreter, which runs kernels on the CPU."""

from triton.runtime import interpreter

_patch_lang_tensor = interpreter._patch_lang_tensor


def repair(monkeypatch):
    """Before 3.8 it reads the bounds of loops from arrays of one entry, which NumPy refuses."""
    monkeypatch.setattr(interpreter, "_patch_lang_tensor", _with_index)


def _with_index(tensor, *scope):
    _patch_lang_tensor(tensor, *scope)
    tensor.__index__ = lambda self: self.handle.data.item()
