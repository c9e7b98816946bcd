"""Thin biases as extra columns of query and key: fused attention, O(N) memory.

`softmax(scale q k^T + left right^T) = softmax(scale [q, left / scale] [k, right]^T)`: exact in
exact arithmetic, for any attention kernel (FlashBias, arXiv 2505.12044). Besides `LowRankBias`,
tables along one axis of the grid are thin: their bias has one value per line (row or column) of
keys, times the one-hot line of the key. The same one-hots appended to the value make fused
attention return the attention summed per line, which is all that a value table needs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from posenc.attention.call import AttentionCall
from posenc.attention.fused import Operands
from posenc.pairs import read_pairs, sum_buckets
from posenc.terms import BiasTerm, DenseBias, LookupBias, LowRankBias, Term, ValueLookup

BLOCK = 8  # kernels want head dims that are multiples of it
MIN_SCALE = 1e-6
MAX_WIDTH = 256  # of the fused kernels on CUDA


def rejects(call: AttentionCall) -> str | None:
    """Computes thin terms only, and in 16 bit does not train those that 16 bits cannot hold."""
    full = [_describe(term) for term in call.terms if not _is_thin(term)]
    if full or not call.terms:
        return (
            f"no low-rank factors in {' and '.join(sorted(set(full))) or 'a call without a bias'}"
        )
    if width(call) > MAX_WIDTH:
        return f"head_dim and ranks make {width(call)} columns, more than {MAX_WIDTH}"
    if _is_16_bit(call) and call.is_wide and call.trains_biases:
        return f"the gradients of wide factors are lost in {call.query.dtype}"
    # Only a given scale: that of a head_dim is large enough, and a symbol under torch.compile,
    # which Dynamo cannot compare inside a second checkpointed block.
    given = call.given_scale
    if call.bias_terms and given is not None and abs(given) < MIN_SCALE:
        return f"the factors are divided by scale={given}, which is too small"
    return None


def compute(call: AttentionCall) -> Tensor:
    """`[B, heads, N, Dv]`."""
    value_lines = _value_lines(call)
    value_dim = call.value.shape[-1]
    out = _operands(call).attend()
    result, start = out[..., :value_dim], value_dim
    for axis, first in value_lines.items():
        lines = out[..., start : (start := start + _num_lines(first))].to(call.dtype)
        for term in call.value_terms:
            if term.index.axis == axis:
                result = result + _read_values(term, lines)
    return result.to(call.query.dtype)


def kernel(call: AttentionCall) -> str | None:
    """Which of PyTorch's kernels would compute it."""
    return _operands(call).kernel()


def _operands(call: AttentionCall) -> Operands:
    columns = [_columns(term, call) for term in call.bias_terms]
    total = width(call)
    return Operands(
        _widen(call.query, total, [left for left, _ in columns]),
        _widen(call.key, total, [right for _, right in columns]),
        # On the CPU a value narrower than the query takes the unfused path.
        _widen(call.value, total, [_one_hot(t, call) for t in _value_lines(call).values()]),
        call.fused_mask,
        call.dropout_p,
        scale=call.scale,  # not that of the new width
    )


def rank(call: AttentionCall) -> int:
    """Columns that the biases need together."""
    return sum(_num_columns(term, _is_16_bit(call)) for term in call.bias_terms)


def width(call: AttentionCall) -> int:
    """Of the widened query, key and value."""
    lines = sum(_num_lines(term) for term in _value_lines(call).values())
    columns = max(call.query.shape[-1] + rank(call), call.value.shape[-1] + lines)
    return -(-columns // BLOCK) * BLOCK


def _is_16_bit(call: AttentionCall) -> bool:
    return call.query.dtype != call.dtype


def _is_thin(term: Term) -> bool:
    if isinstance(term, (LookupBias, ValueLookup)):
        return term.index.axis is not None
    return isinstance(term, LowRankBias)


def _describe(term: Term) -> str:
    name = type(term).__name__
    return name if isinstance(term, DenseBias) else f"{name} over both axes"


def _num_columns(term: BiasTerm, is_16_bit: bool) -> int:
    if isinstance(term, LowRankBias):
        return term.left.shape[-1] * (3 if is_16_bit else 1)
    return _num_lines(term) * (2 if is_16_bit else 1) if isinstance(term, LookupBias) else 0


def _num_lines(term: LookupBias | ValueLookup) -> int:
    layout = term.index.layout
    along = layout.height if term.index.axis == "rows" else layout.width
    return along + (layout.prefix > 0)


def _columns(term: BiasTerm, call: AttentionCall) -> tuple[Tensor, Tensor]:
    """Of query and key, in their dtype: `[1 or B, 1 or heads, N, columns]` each."""
    if isinstance(term, LookupBias):
        return _line_columns(term, call)
    assert isinstance(term, LowRankBias)  # `rejects` let nothing else through
    # The kernel multiplies all products by the scale; these columns must come out unscaled.
    left, right = term.left.to(call.dtype) / call.scale, term.right.to(call.dtype)
    return _split(left, right, call.query.dtype) if _is_16_bit(call) else (left, right)


def _line_columns(term: LookupBias, call: AttentionCall) -> tuple[Tensor, Tensor]:
    """The bias of each token with each line, and the lines' one-hots."""
    dtype, device = call.query.dtype, call.query.device
    where = term.index.line_index(term.read_by, device)
    values = read_pairs(term.lookup.flatten(-2), where).to(call.dtype) / call.scale
    # Minus infinity would make NaN of the zeros of a one-hot.
    limit = torch.finfo(dtype).max / 4
    values = values.clamp(-limit, limit)
    one_hot = term.index.lines(device).one_hot.to(dtype)[None, None]
    if _is_16_bit(call):
        high = values.to(dtype)
        values = torch.cat([high, (values - high).to(dtype)], dim=-1)
        one_hot = torch.cat([one_hot, one_hot], dim=-1)
    return (one_hot, values) if term.read_by == "key" else (values, one_hot)


def _value_lines(call: AttentionCall) -> dict[str, ValueLookup]:
    """A value term of each axis: terms of one axis share the one-hots."""
    return {str(term.index.axis): term for term in reversed(call.value_terms)}


def _one_hot(term: ValueLookup, call: AttentionCall) -> Tensor:
    lines = term.index.lines(call.value.device)
    return lines.one_hot.to(call.value.dtype)[None, None]


def _read_values(term: ValueLookup, lines: Tensor) -> Tensor:
    """The value term, from the attention summed per line: `[B, heads, N, Dv]`."""
    buckets = term.index.line_index("one", lines.device)
    return sum_buckets(lines, buckets, term.index.num_buckets) @ term.table.to(lines.dtype)


def _split(left: Tensor, right: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Each number as a rounded high part and the rest: products as good as in twice the bits.

    The product of the two rests, 2**-16 of the whole and less, is left out.
    """
    if dtype == torch.float16:
        left, right = _balance(left, right)
    high_left, high_right = left.to(dtype), right.to(dtype)
    low_left, low_right = (left - high_left).to(dtype), (right - high_right).to(dtype)
    return (
        torch.cat([high_left, high_left, low_left], dim=-1),
        torch.cat([high_right, low_right, high_right], dim=-1),
    )


def _balance(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Moves a power of two between the factors of each column: float16 ends at 65504."""
    tops = (x.detach().abs().amax((0, 1, 2)).clamp(min=1e-30) for x in (left, right))
    top_left, top_right = tops
    factor = torch.exp2(((top_right.log2() - top_left.log2()) / 2).round().clamp(-40, 40))
    return left * factor, right / factor


def _widen(tensor: Tensor, total: int, columns: list[Tensor]) -> Tensor:
    """`[tensor, columns, 0]` of this width."""
    batch, heads, tokens, own = tensor.shape
    filled = own + sum(part.shape[-1] for part in columns)
    parts = [part.expand(batch, heads, tokens, -1) for part in columns]
    return F.pad(torch.cat([tensor, *parts], dim=-1), (0, total - filled))
