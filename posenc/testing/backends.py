"""Checks of encodings that act inside attention: every backend against the reference."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.testing import assert_close

from posenc.attention import BackendName, attend, explain
from posenc.attention.api import BACKENDS
from posenc.layout import TokenLayout
from posenc.terms import BiasTerm
from posenc.testing.subject import LAYOUTS, Subject, random_tensor


def backends_agree(subject: Subject) -> None:
    """Equals the reference on every backend, forward and all gradients."""
    for layout in LAYOUTS:
        for backend in BACKENDS:
            compare(subject, layout, backend, torch.float64)


def compare(subject: Subject, layout: TokenLayout, backend: str, dtype: torch.dtype) -> bool:
    """Whether the backend computes the call; then it must give what the reference gives."""
    encoding = subject.random(layout)
    q, k, v = subject.qkv(layout, dtype)
    terms = encoding(q, k, layout)
    if explain(q, k, v, terms).reasons[backend] is not None:
        return False
    got = _with_gradients(encoding, (q, k, v), layout, backend)
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    want = _with_gradients(encoding, tuple(exact), layout, "reference")
    # Gradients of parameters are sums over all pairs of some hundred rounded products.
    close = 1e-8 if dtype == torch.float64 else 100 * torch.finfo(dtype).eps
    if any(isinstance(term, BiasTerm) and term.is_wide for term in terms):
        close *= 100  # wide factors say of themselves that sums of them lose digits
    for mine, theirs in zip(got, want, strict=True):
        mine = torch.zeros_like(theirs) if mine is None else mine
        scale = max(1.0, float(theirs.detach().abs().max())) if theirs.numel() else 1.0
        assert_close(mine.to(theirs.dtype), theirs, rtol=0, atol=close * scale)
    return True


def _with_gradients(
    encoding: Any, qkv: tuple[Tensor, ...], layout: TokenLayout, backend: str
) -> list[Any]:
    q, k, v = qkv
    out = attend(q, k, v, encoding(q, k, layout), backend=cast(BackendName, backend))
    leaves = [q, k, v, *(p for p in encoding.parameters() if p.requires_grad)]
    cotangent = random_tensor(tuple(out.shape), 9, out.dtype)
    grads = torch.autograd.grad(out, leaves, cotangent, materialize_grads=True)
    return [out, *grads]


def precision(subject: Subject) -> None:
    """Gives terms in at least float32, also under autocast."""
    layout = LAYOUTS[1]
    encoding = subject.random(layout, torch.float32)
    q, k, _ = subject.qkv(layout, torch.bfloat16)
    for context in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=context):
            terms = encoding(q, k, layout)
        for term in terms:
            for name, tensor in term.tensors().items():
                assert tensor.dtype == torch.float32, f"{name} is {tensor.dtype}"


CHECKS = (backends_agree, precision)
