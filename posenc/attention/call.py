"""One attention call, checked: what every backend receives."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from posenc.functional.precision import as_mask, at_least_float32
from posenc.terms import BiasTerm, CallShape, DenseBias, Term, ValueLookup, check_terms

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """Arguments of `torch.nn.functional.scaled_dot_product_attention`, plus position terms."""

    query: Tensor
    key: Tensor
    value: Tensor
    terms: tuple[Term, ...]
    attn_mask: Tensor | None
    dropout_p: float
    is_causal: bool
    given_scale: float | None
    enable_gqa: bool

    @property
    def scale(self) -> float:
        """Of the content scores."""
        return self.query.shape[-1] ** -0.5 if self.given_scale is None else self.given_scale

    @property
    def bias_terms(self) -> list[BiasTerm]:
        """The terms that are added to the scores, as the encodings gave them."""
        return [term for term in self.terms if isinstance(term, BiasTerm)]

    @property
    def biases(self) -> list[BiasTerm]:
        """The same biases in their most exact form."""
        return [term.exact_form for term in self.bias_terms]

    @property
    def trains_biases(self) -> bool:
        """Whether a gradient must reach a bias, or the mask."""
        if not torch.is_grad_enabled():
            return False
        mask_trains = self.attn_mask is not None and self.attn_mask.requires_grad
        return mask_trains or any(term.requires_grad for term in self.bias_terms)

    @property
    def is_wide(self) -> bool:
        """Whether the factors of any bias span many orders of magnitude."""
        return any(term.is_wide for term in self.bias_terms)

    @property
    def mask_4d(self) -> Tensor | None:
        """The mask as `[1 or B, 1 or heads, 1 or Nq, 1 or Nk]`, a view."""
        mask = self.attn_mask
        return None if mask is None else mask[(None,) * (4 - mask.dim())]

    @property
    def may_mask_rows(self) -> bool:
        """Whether all keys of a query may be at minus infinity."""
        return self.attn_mask is not None or any(isinstance(t, DenseBias) for t in self.terms)

    @property
    def fused_mask(self) -> Tensor | None:
        """The mask as fused attention takes it: boolean, or in the dtype of the query.

        PyTorch's CPU kernels take float32 beside 16-bit queries, those of CUDA refuse it, and
        cuDNN's read it as if it were 16 bit (PyTorch 191612).
        """
        mask = self.attn_mask
        if mask is None or mask.dtype == torch.bool:
            return mask
        return as_mask(mask, self.query.dtype)

    @property
    def value_terms(self) -> list[ValueLookup]:
        """The terms that are added to the output."""
        return [term for term in self.terms if isinstance(term, ValueLookup)]

    @property
    def has_equal_batches(self) -> bool:
        """Whether query, key and value have the same images and heads."""
        query, key, value = self.query.shape, self.key.shape, self.value.shape
        # Whole shapes are equal in the usual case, and slices of them take longer.
        return query == key == value or query[:2] == key[:2] == value[:2]

    @property
    def dtype(self) -> torch.dtype:
        """At least float32: scores, factors, lookups and bias sums are computed in it."""
        return at_least_float32(self.query.dtype)


def check_call(call: AttentionCall) -> None:
    """Raises when the arguments do not fit each other."""
    _check_tensors(call)
    _check_numbers(call)
    if not 0 <= call.dropout_p <= 1:
        raise ValueError(f"attend: dropout_p must be a probability, got {call.dropout_p}")
    if call.attn_mask is not None:
        _check_mask(call, call.attn_mask)
    if call.terms:
        _check_terms(call)


def check_types(query: Any, key: Any, value: Any, attn_mask: Any) -> None:
    """Raises unless these are dense tensors."""
    _check_type("query", query)
    _check_type("key", key)
    _check_type("value", value)
    if attn_mask is not None:
        _check_type("attn_mask", attn_mask)


def _check_type(name: str, tensor: Any) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"attend: {name} must be a tensor, got {tensor!r}")
    if tensor.is_nested or tensor.layout != torch.strided:
        kind = "nested" if tensor.is_nested else tensor.layout
        raise TypeError(
            f"attend: {name} must be a dense tensor, got a {kind} one; convert it with "
            ".to_dense(), or pad it (torch.nested.to_padded_tensor) and mask the padding"
        )


def _check_tensors(call: AttentionCall) -> None:
    query, key, value = call.query, call.key, call.value
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.dim() != 4:
            raise ValueError(
                f"attend: {name} must be [B, heads, N, head_dim], got {list(tensor.shape)}"
            )
    if not (query.dtype == key.dtype == value.dtype and query.dtype in DTYPES):
        raise TypeError(
            f"attend: query, key and value must have one floating point dtype, got {query.dtype}, "
            f"{key.dtype}, {value.dtype}; convert them with .to(dtype) to one of 16, 32 or 64 bits"
        )
    if not query.device == key.device == value.device:
        raise ValueError(
            f"attend: query, key and value must be on one device, got {query.device}, "
            f"{key.device}, {value.device}"
        )
    if query.shape[-1] != key.shape[-1] or key.shape[-2] != value.shape[-2]:
        raise ValueError(
            "attend: query and key need the same head_dim, key and value the same number of "
            f"tokens, got {list(query.shape)}, {list(key.shape)}, {list(value.shape)}"
        )
    if query.shape[-1] == 0:
        raise ValueError(
            f"attend: head_dim must be at least 1, got query {list(query.shape)} and key "
            f"{list(key.shape)}; pass [B, heads, N, head_dim]"
        )
    if not call.terms and not call.has_equal_batches and not _fit_each_other(call):
        raise ValueError(
            "attend: B and heads of query, key and value must be equal or 1 (with enable_gqa=True "
            "the heads of key and value must divide those of the query), got "
            f"{list(query.shape)}, {list(key.shape)}, {list(value.shape)}"
        )


def _fit_each_other(call: AttentionCall) -> bool:
    shapes = [x.shape for x in (call.query, call.key, call.value)]
    batch_fits = len({shape[0] for shape in shapes} - {1}) <= 1
    heads = [shape[1] for shape in shapes]
    if call.enable_gqa:
        return batch_fits and all(few and heads[0] % few == 0 for few in heads)
    return batch_fits and len(set(heads) - {1}) <= 1


def _check_numbers(call: AttentionCall) -> None:
    _check_bool("is_causal", call.is_causal)
    _check_bool("enable_gqa", call.enable_gqa)
    if isinstance(call.dropout_p, (str, bool, type(None))):
        raise TypeError(f"attend: dropout_p must be a number, got {call.dropout_p!r}")
    if call.given_scale is not None:
        _check_scale(call.given_scale)


def _check_bool(name: str, value: Any) -> None:
    if not isinstance(value, (bool, torch.SymBool)):
        raise TypeError(f"attend: {name} must be True or False, got {value!r}")


def _check_scale(scale: Any) -> None:
    # A symbolic number has no value yet, and a comparison would fix it.
    if torch.compiler.is_compiling() or isinstance(scale, (torch.SymFloat, torch.SymInt)):
        return
    if isinstance(scale, str) or not hasattr(scale, "__float__"):
        raise TypeError(f"attend: scale must be a number, got {scale!r}")
    if not math.isfinite(scale):
        raise ValueError(
            f"attend: scale must be finite, got {scale}; leave it out for head_dim ** -0.5"
        )


def _check_device(name: str, tensor: Tensor, call: AttentionCall) -> None:
    if tensor.device != call.query.device:
        raise ValueError(
            f"attend: {name} is on {tensor.device}, the query on {call.query.device}; move it with "
            ".to(device)"
        )


def _check_mask(call: AttentionCall, mask: Tensor) -> None:
    _check_device("attn_mask", mask, call)
    if call.is_causal:
        raise ValueError("attend: attn_mask and is_causal=True exclude each other, as in SDPA")
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise TypeError(
            f"attend: attn_mask must be boolean (True = keep) or floating point (added to the "
            f"scores), got {mask.dtype}"
        )
    full = (*call.query.shape[:3], call.key.shape[2])
    pairs = zip(reversed(mask.shape), reversed(full), strict=False)
    if not 2 <= mask.dim() <= 4 or any(size not in (1, want) for size, want in pairs):
        raise ValueError(
            f"attend: attn_mask must have 2 to 4 dimensions and broadcast to [B, heads, Nq, Nk] = "
            f"{list(full)}, got {list(mask.shape)}"
        )


def _check_terms(call: AttentionCall) -> None:
    tokens = call.query.shape[2]
    if tokens != call.key.shape[2]:
        raise ValueError(
            f"attend: position terms need as many queries as keys, got Nq={tokens} and "
            f"Nk={call.key.shape[2]}; pass a float attn_mask for cross attention"
        )
    if not call.has_equal_batches and not call.enable_gqa:
        shapes = ", ".join(str(list(x.shape)) for x in (call.query, call.key, call.value))
        raise ValueError(
            "attend: with position terms query, key and value need the same B and heads, got "
            f"{shapes}; expand them first"
        )
    if call.is_causal:
        raise ValueError(
            "attend: is_causal=True is not defined together with position terms on a token grid; "
            "pass the causal mask as attn_mask"
        )
    if call.enable_gqa:
        raise ValueError(
            "attend: enable_gqa=True is not defined together with position terms; "
            "repeat the key and value heads first (repeat_interleave on dimension 1)"
        )
    check_terms(call.terms, "attend: terms")
    batch, heads, tokens, head_dim = call.query.shape
    shape = CallShape(batch, heads, tokens, head_dim, call.value.shape[-1])
    for term in call.terms:
        _check_term(term, shape, call)


def _check_term(term: Term, shape: CallShape, call: AttentionCall) -> None:
    # Only a term that cannot change has a memo: what it fitted once it fits always.
    memo = getattr(term, "memo", None)
    if memo is not None and memo.fits == (shape, call.query.device):
        return
    for name, tensor in term.tensors().items():
        _check_device(f"{type(term).__name__}.{name}", tensor, call)
    term.check(shape)
    if memo is not None:
        memo.fits = (shape, call.query.device)


def as_terms(terms: Sequence[Term] | Term) -> tuple[Term, ...]:
    """A tuple of terms; one term alone is accepted."""
    if callable(terms):
        raise TypeError(
            f"attend: terms must be what an encoding returned, got {type(terms).__name__} itself: "
            "pass encoding(q, k, layout)"
        )
    if isinstance(terms, Term):
        return (terms,)
    if not isinstance(terms, Iterable):
        raise TypeError(f"attend: terms must be terms of encodings, or (), got {terms!r}")
    return tuple(terms)
