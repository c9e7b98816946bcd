"""`attend`: the only place where attention scores exist."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from posenc.attention.backends import flex, lowrank, reference, sdpa, tiled, triton
from posenc.attention.call import AttentionCall, as_terms, check_call, check_types
from posenc.attention.lower import combine, lower
from posenc.attention.picker import pick
from posenc.functional.precision import autocast_dtype, without_autocast
from posenc.terms import Term


class Backend(Protocol):
    """A way to compute an attention call; `rejects` says in words why it will not."""

    def rejects(self, call: AttentionCall) -> str | None:
        """None when the backend computes this call."""
        ...

    def compute(self, call: AttentionCall) -> Tensor:
        """`[B, heads, Nq, Dv]`."""
        ...


# A new backend is one file, a name, a line here and a rule in picker.py.
BackendName = Literal["auto", "reference", "sdpa", "lowrank", "tiled", "triton", "flex"]
BACKENDS: dict[str, Backend] = {
    "reference": reference,
    "sdpa": sdpa,
    "lowrank": lowrank,
    "tiled": tiled,
    "triton": triton,
    "flex": flex,  # by name only
}


@dataclass(frozen=True)
class Explanation:
    """What `attend` would do.

    Args:
        choice: name of the backend; with a `Mixture` those of both attentions, joined by " + ".
        why: it was chosen.
        reasons: backend name -> None when it could compute the call, else why it rejects it.
        sdpa_kernel: where the backend is built on `scaled_dot_product_attention`, the kernel that
            PyTorch would choose ("flash", "efficient", "cudnn" or "math"); None elsewhere, and
            where PyTorch does not say.
    """

    choice: str
    why: str
    reasons: dict[str, str | None]
    sdpa_kernel: str | None = None

    def __str__(self) -> str:
        kernel = f", by PyTorch's {self.sdpa_kernel} kernel" if self.sdpa_kernel else ""
        lines = [f"{name}: {reason or 'possible'}" for name, reason in self.reasons.items()]
        return "\n".join([f"choice: {self.choice}{kernel} ({self.why})", *lines])


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    terms: Sequence[Term] | Term = (),
    *,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    backend: BackendName = "auto",
) -> Tensor:
    """Scaled dot product attention with position terms.

    `out = softmax(scale q k^T + sum of biases + mask) v + value terms`, where `Rotation`,
    `MatrixRotation`, `ContentScale` and `Mixture` change that formula as they say. Everything but
    `terms` and `backend` means what it means in
    `torch.nn.functional.scaled_dot_product_attention`: a boolean mask keeps where True, a float
    mask (of any dtype) is added, `dropout_p` is always applied. A fully masked row gives 0, with
    finite gradients. As with fused attention, a second derivative may not exist (`tiled`, `sdpa`);
    `backend="reference"` has it.

    Args:
        q: queries `[B, heads, N, head_dim]`.
        k: keys `[B, heads, N, head_dim]`.
        v: values `[B, heads, N, Dv]`.
        terms: what encodings returned; they add up.
        attn_mask: 2 to 4 dimensions, broadcast to `[B, heads, N, N]`.
        dropout_p: probability of dropping an attention weight.
        is_causal: not defined together with terms.
        scale: of the content scores, default `head_dim ** -0.5`.
        enable_gqa: not defined together with terms.
        backend: "auto", or a name in `explain(...).reasons`. A named backend never falls back.

    Raises:
        ValueError: shapes, devices or options that do not fit, an unknown backend, or a backend
            that rejects this call (with its reason).
        TypeError: dtypes that differ.

    Returns:
        `[B, heads, N, Dv]` in the dtype of `q` (under autocast, in autocast's, as SDPA does).
    """
    call = make_call(q, k, v, terms, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    return compute_call(call, backend)


def explain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    terms: Sequence[Term] | Term = (),
    *,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    backend: BackendName = "auto",
) -> Explanation:
    """What `attend` would do with the same arguments, without computing it."""
    call = make_call(q, k, v, terms, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    return explain_call(call, backend)


def attention_matrix(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    terms: Sequence[Term] | Term = (),
    *,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The weights that `attend` gives to the values, before dropout, as the definition says.

    `softmax(scale q k^T + sum of biases + mask)`. Arguments mean what they mean in `attend`, and
    are checked as there; the values give no more than a shape. A fully masked row is 0.

    Raises:
        ValueError: shapes, devices or options that do not fit.
        TypeError: dtypes that differ.

    Returns:
        `[B, heads, N, N]`, in at least float32.

    >>> q = k = v = torch.zeros(1, 1, 2, 4)
    >>> attention_matrix(q, k, v)
    tensor([[[[0.5000, 0.5000],
              [0.5000, 0.5000]]]])
    """
    return matrix_of(make_call(q, k, v, terms, attn_mask, 0.0, is_causal, scale, enable_gqa))


def check_backend(name: str) -> None:
    """Raises unless `name` is "auto" or a backend."""
    if not isinstance(name, str) or name not in ("auto", *BACKENDS):
        known = ", ".join(["auto", *BACKENDS])
        raise ValueError(f"unknown attention backend {name!r}; there are: {known}")


def make_call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    terms: Sequence[Term] | Term,
    attn_mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> AttentionCall:
    """The arguments of `attend` as a call: in autocast's dtype where it is on, and checked."""
    check_types(q, k, v, attn_mask)
    call = AttentionCall(
        q, k, v, as_terms(terms), attn_mask, dropout_p, is_causal, scale, enable_gqa
    )
    if (dtype := autocast_dtype(q.device)) is not None:
        call = _autocast(call, dtype)
    check_call(call)
    return call


def compute_call(call: AttentionCall, backend: str) -> Tensor:
    """What `attend` returns."""
    compute = functools.partial(_compute, backend=backend)
    if autocast_dtype(call.query.device) is None:  # the usual case, without a context
        return combine(lower(call), compute)
    with without_autocast(call.query.device):
        return combine(lower(call), compute)


def explain_call(call: AttentionCall, backend: str) -> Explanation:
    """What `compute_call` would do."""
    with without_autocast(call.query.device):
        calls = [part.call for part in lower(call)]
    choices, whys = zip(*(_choose(each, backend) for each in calls), strict=True)
    kernels = [_sdpa_kernel(*each) for each in zip(calls, choices, strict=True)]
    return Explanation(
        " + ".join(choices),
        "; ".join(whys),
        _rejections(calls),
        " + ".join(filter(None, kernels)) or None,
    )


def matrix_of(call: AttentionCall) -> Tensor:
    """The attention weights of a call before dropout, `[B, heads, N, N]`."""
    with without_autocast(call.query.device):
        return combine(lower(call), reference.attention_matrix)


def _autocast(call: AttentionCall, dtype: torch.dtype) -> AttentionCall:
    """SDPA is on autocast's 16-bit list: cast its inputs as autocast would (float64 stays)."""

    def cast(tensor: Tensor) -> Tensor:
        return tensor if tensor.dtype == torch.float64 else tensor.to(dtype)

    mask: Any = call.attn_mask
    if mask is not None and mask.is_floating_point() and not call.terms:
        mask = cast(mask)
    return replace(
        call, query=cast(call.query), key=cast(call.key), value=cast(call.value), attn_mask=mask
    )


def _compute(call: AttentionCall, backend: str) -> Tensor:
    return BACKENDS[_choose(call, backend)[0]].compute(call)


def _rejections(calls: list[AttentionCall]) -> dict[str, str | None]:
    """The first reason of each backend against any of the calls."""
    return {
        name: next(filter(None, map(backend.rejects, calls)), None)
        for name, backend in BACKENDS.items()
    }


def _sdpa_kernel(call: AttentionCall, choice: str) -> str | None:
    kernel = getattr(BACKENDS[choice], "kernel", None)
    if kernel is None:
        return None
    with without_autocast(call.query.device):
        return kernel(call)


def _choose(call: AttentionCall, backend: str) -> tuple[str, str]:
    """(backend, why)."""
    if backend == "auto":
        return pick(call)
    check_backend(backend)
    reason = BACKENDS[backend].rejects(call)
    if reason is not None:
        raise ValueError(
            f'backend="{backend}" does not compute this call: {reason}. '
            'Use backend="auto", or see posenc.explain(...)'
        )
    return backend, "asked for"
