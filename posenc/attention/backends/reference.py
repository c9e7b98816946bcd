"""The definition: plain eager mathematics, any device, at least float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from posenc.attention.call import AttentionCall


def rejects(call: AttentionCall) -> str | None:
    """Computes everything."""
    return None


def compute(call: AttentionCall) -> Tensor:
    """`softmax(scale q k^T + biases + mask) v`, plus the value terms: `[B, heads, Nq, Dv]`."""
    attention = attention_matrix(call)
    if call.dropout_p > 0:
        attention = F.dropout(attention, call.dropout_p)
    out = attention @ _repeat_heads(call, call.value).to(call.dtype)
    for term in call.value_terms:
        out = out + term.apply(attention)
    return out.to(call.query.dtype)


def attention_matrix(call: AttentionCall) -> Tensor:
    """The attention before dropout, `[B, heads, Nq, Nk]`; a fully masked row is zero."""
    query, key = call.query.to(call.dtype), _repeat_heads(call, call.key).to(call.dtype)
    scores = (query * call.scale) @ key.transpose(-2, -1)
    for term in call.biases:
        scores = scores + term.dense().to(call.dtype)
    mask = causal_mask(call) if call.is_causal else call.attn_mask
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, float("-inf"))
    elif mask is not None:
        scores = scores + mask.to(call.dtype)
    if not (call.may_mask_rows or call.is_causal):
        return scores.softmax(dim=-1)
    empty = (scores == float("-inf")).all(dim=-1, keepdim=True)
    return scores.masked_fill(empty, 0.0).softmax(dim=-1).masked_fill(empty, 0.0)


def causal_mask(call: AttentionCall) -> Tensor:
    """True where the key is not later than the query."""
    shape = (call.query.shape[2], call.key.shape[2])
    return torch.ones(shape, dtype=torch.bool, device=call.query.device).tril()


def _repeat_heads(call: AttentionCall, tensor: Tensor) -> Tensor:
    if not call.enable_gqa:
        return tensor
    return tensor.repeat_interleave(call.query.shape[1] // tensor.shape[1], dim=1)
