"""Low-rank biases as extra columns of query and key: fused attention, O(N) memory.

`softmax(scale q k^T + left right^T) = softmax(scale [q, left / scale] [k, right]^T)`: exact in
exact arithmetic, for any attention kernel (FlashBias, arXiv 2505.12044).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from posenc.attention.call import AttentionCall
from posenc.terms import LowRankBias

BLOCK = 8  # kernels want head dims that are multiples of it
MIN_SCALE = 1e-6
MAX_WIDTH = 256  # of the fused kernels on CUDA


def rejects(call: AttentionCall) -> str | None:
    """Computes low-rank biases only, and in 16 bit not those that 16-bit factors cannot hold."""
    if call.value_terms:
        return "ValueLookup needs the attention matrix, which fused attention does not return"
    others = {type(term).__name__ for term in call.biases if not isinstance(term, LowRankBias)}
    if others or not call.biases:
        return f"no low-rank factors in {' and '.join(sorted(others)) or 'a call without a bias'}"
    if _width(call) > MAX_WIDTH:
        return f"head_dim and ranks make {_width(call)} columns, more than {MAX_WIDTH}"
    if call.query.dtype != call.dtype and is_wide(call):
        return f"the factors of a wide bias span more than {call.query.dtype} resolves"
    if abs(call.scale) < MIN_SCALE:
        return f"the factors are divided by scale={call.scale}, which is too small"
    return None


def compute(call: AttentionCall) -> Tensor:
    """`[B, heads, N, Dv]`."""
    left = torch.cat([_rows(term.left, call) / call.scale for term in _terms(call)], dim=-1)
    right = torch.cat([_rows(term.right, call) for term in _terms(call)], dim=-1)
    width = _width(call)
    out = F.scaled_dot_product_attention(
        _widen(call.query, width, left),
        _widen(call.key, width, right),
        _widen(call.value, width),  # on the CPU a narrower value takes the unfused path
        attn_mask=_mask(call),
        dropout_p=call.dropout_p,
        scale=call.scale,  # not that of the new width
    )
    return out[..., : call.value.shape[-1]]


def rank(call: AttentionCall) -> int:
    """Columns that the biases need together."""
    return sum(term.left.shape[-1] for term in _terms(call))


def is_wide(call: AttentionCall) -> bool:
    """Whether the factors of any bias span many orders of magnitude."""
    return any(term.wide for term in _terms(call))


def _terms(call: AttentionCall) -> list[LowRankBias]:
    return [term for term in call.biases if isinstance(term, LowRankBias)]


def _mask(call: AttentionCall) -> Tensor | None:
    mask = call.attn_mask
    return mask if mask is None or mask.dtype == torch.bool else mask.to(call.query.dtype)


def _width(call: AttentionCall) -> int:
    columns = max(call.query.shape[-1] + rank(call), call.value.shape[-1])
    return -(-columns // BLOCK) * BLOCK


def _rows(factor: Tensor, call: AttentionCall) -> Tensor:
    batch, heads, tokens, _ = call.query.shape
    return factor.to(call.dtype).expand(batch, heads, tokens, -1)


def _widen(tensor: Tensor, width: int, columns: Tensor | None = None) -> Tensor:
    """`[tensor, columns, 0]` of this width, in the dtype of `tensor`."""
    if columns is not None:
        tensor = torch.cat([tensor, columns.to(tensor.dtype)], dim=-1)
    return F.pad(tensor, (0, width - tensor.shape[-1]))
