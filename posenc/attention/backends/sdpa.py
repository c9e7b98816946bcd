"""PyTorch's fused attention with the sum of all biases as its additive mask."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from posenc.attention.call import AttentionCall
from posenc.terms import BiasTerm


def rejects(call: AttentionCall) -> str | None:
    """Value terms need the attention matrix, which a fused kernel does not give."""
    if call.value_terms:
        return "ValueLookup needs the attention matrix, which fused attention does not return"
    return None


def compute(call: AttentionCall) -> Tensor:
    """`[B, heads, Nq, Dv]`."""
    return F.scaled_dot_product_attention(
        call.query,
        call.key,
        call.value,
        attn_mask=_mask(call),
        dropout_p=call.dropout_p,
        is_causal=call.is_causal,
        scale=call.given_scale,
        enable_gqa=call.enable_gqa,
    )


def _mask(call: AttentionCall) -> Tensor | None:
    biases = call.biases
    if not biases:
        return call.attn_mask
    if len(biases) == 1 and call.attn_mask is None:
        # The usual case of a static bias in eval: the finished mask is remembered.
        key = ("mask", call.query.dtype)
        return _remember(biases[0], key, lambda: _finish(biases[0].dense().to(call.dtype), call))
    bias = functools.reduce(operator.add, (_dense(term, call) for term in biases))
    return _finish(_add_mask(bias, call.attn_mask), call)


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


def _finish(bias: Tensor, call: AttentionCall) -> Tensor:
    """Casts last. In 16 bit each row is shifted first so that its maximum is zero.

    Softmax does not see the shift, but a 16-bit float resolves small numbers far better.
    """
    if bias.dtype == call.query.dtype:
        return bias
    top = bias.detach().amax(dim=-1, keepdim=True)
    return (bias - top.masked_fill(top == float("-inf"), 0.0)).to(call.query.dtype)
