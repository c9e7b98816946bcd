"""PyTorch's fused attention with the sum of all biases as its additive mask."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from posenc.attention.call import AttentionCall
from posenc.attention.fused import Operands
from posenc.functional.precision import as_mask
from posenc.terms import BiasTerm


def rejects(call: AttentionCall) -> str | None:
    """Value terms need the attention matrix, which a fused kernel does not give."""
    if call.value_terms:
        return "ValueLookup needs the attention matrix, which fused attention does not return"
    return None


def compute(call: AttentionCall) -> Tensor:
    """`[B, heads, Nq, Dv]`."""
    if _is_positional(call):
        return torch.einsum("hij,bhjd->bhid", _weights(call), call.value)
    return _operands(call, _mask(call)).attend()


def kernel(call: AttentionCall) -> str | None:
    """Which of PyTorch's kernels would compute it; the mask is not built for that."""
    if _is_positional(call):
        return None
    biases = call.biases
    if not biases:
        return _operands(call, call.fused_mask).kernel()
    images, heads = (max(sizes) for sizes in zip(*map(_images_and_heads, biases), strict=True))
    shape = (images, heads, call.query.shape[2], call.key.shape[2])
    mask = call.query.new_empty(shape).requires_grad_(call.trains_biases)
    return _operands(call, mask).kernel()


def _images_and_heads(term: BiasTerm) -> tuple[int, int]:
    shapes = [tensor.shape for tensor in term.tensors().values()]
    return max(shape[0] for shape in shapes), max(shape[1] for shape in shapes)


def _is_positional(call: AttentionCall) -> bool:
    """Whether the attention follows from one static bias alone, and may be remembered."""
    biases = call.biases
    # The memo first: a compiled call has none, and its symbolic scale must not be compared.
    if len(biases) != 1 or biases[0].memo is None or call.given_scale != 0:
        return False
    is_static = _images_and_heads(biases[0])[0] == 1
    return is_static and call.dropout_p == 0 and not call.may_mask_rows


def _weights(call: AttentionCall) -> Tensor:
    """The attention of positions, the same for all images: `[heads, Nq, Nk]`."""
    (bias,) = call.biases
    weights = _remember(
        bias,
        ("attention", call.query.dtype),
        lambda: bias.dense().to(call.dtype).softmax(dim=-1).to(call.query.dtype),
    )
    return weights[0].expand(call.query.shape[1], -1, -1)


def _operands(call: AttentionCall, mask: Tensor | None) -> Operands:
    return Operands(
        call.query,
        call.key,
        call.value,
        mask,
        call.dropout_p,
        call.is_causal,
        call.given_scale,
        call.enable_gqa,
    )


def _mask(call: AttentionCall) -> Tensor | None:
    biases = call.biases
    if not biases:
        return call.fused_mask
    if len(biases) == 1 and call.attn_mask is None:
        # The usual case of a static bias in eval: the finished mask is remembered.
        key = ("mask", call.query.dtype)
        return _remember(biases[0], key, lambda: _build(biases[0], call))
    bias = functools.reduce(operator.add, (_dense(term, call) for term in biases))
    return as_mask(_add_mask(bias, call.attn_mask), call.query.dtype)


def _build(term: BiasTerm, call: AttentionCall) -> Tensor:
    return as_mask(term.dense().to(call.dtype), call.query.dtype)


def _dense(term: BiasTerm, call: AttentionCall) -> Tensor:
    return _remember(term, ("dense", call.dtype), lambda: term.dense().to(call.dtype))


def _remember(term: BiasTerm, key: Any, build: Callable[[], Tensor]) -> Tensor:
    if term.memo is None:
        return build()
    value = term.memo.get(key)
    if value is None:
        with torch.inference_mode(False), torch.no_grad():  # a training step may use it later
            value = build()
        term.memo.keep(key, value)
    return value


def _add_mask(bias: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return bias
    if mask.dtype == torch.bool:
        return bias.masked_fill(~mask, float("-inf"))
    return bias + mask.to(bias.dtype)
