"""A call in the form that the kernels read: all terms of a kind in one tensor."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from posenc.attention.call import AttentionCall
from posenc.attention.kernels.forms import offset_buckets, prefers_blocks
from posenc.layout import TokenLayout
from posenc.memo import memoized
from posenc.pairs import PairIndex
from posenc.terms import DenseBias, LookupBias, LowRankBias


class Operands(NamedTuple):
    """Arguments of the operator `posenc::fused_attention`, in its order.

    A pair of tokens has an offset, and prefix pairs have three more (see forms.py), which tell all
    buckets of all terms. Biases are float32; `[b, h]` is `[1 or B, 1 or heads]`.
    """

    query: Tensor  # [B, heads, Nq, head_dim]
    key: Tensor
    value: Tensor
    table: Tensor | None  # [b, h, offsets]: the bias of an offset
    query_lookup: Tensor | None  # [b, h, T, N]: of a bucket and a query
    key_lookup: Tensor | None  # [b, h, T, N]: of a bucket and a key
    left: Tensor | None  # [b, h, N, rank]
    right: Tensor | None
    keep: Tensor | None  # boolean, four dimensions
    mask: Tensor | None  # added, four dimensions
    query_buckets: Tensor | None  # [terms, offsets] int32
    key_buckets: Tensor | None
    value_buckets: Tensor | None
    seed: Tensor | None  # [1] int64
    height: int  # of the grid; 0 where no term has buckets, as the next two
    width: int
    prefix: int
    num_sums: int  # buckets of all value terms
    scale: float
    is_causal: bool
    dropout_p: float
    is_wide: bool  # 16 bits hold neither the factors nor the rounding of the weights
    is_blocked: bool  # the form of the kernels' tables, see forms.py

    @property
    def differentiable(self) -> tuple[Tensor | None, ...]:
        """Those that may need a gradient, the first eight."""
        return tuple(self[:NUM_DIFFERENTIABLE])  # type: ignore[arg-type]


NUM_DIFFERENTIABLE = 8


def read_call(call: AttentionCall, is_blocked: bool | None = None) -> Operands:
    """The operands, with tables of the usual form or a given one; gradients flow through them."""
    lookups = [term for term in call.biases if isinstance(term, LookupBias)]
    by_query = [term for term in lookups if term.read_by == "query"]
    by_key = [term for term in lookups if term.read_by == "key"]
    left, right = _factors([term for term in call.biases if isinstance(term, LowRankBias)])
    keep, mask = _masks(call)
    device = call.query.device
    layouts = call_layouts(call)
    height, width, prefix = _sizes(layouts.pop()) if layouts else (0, 0, 0)
    values = [term.index for term in call.value_terms]
    return Operands(
        call.query,
        call.key,
        call.value,
        table=_table([term for term in lookups if term.read_by == "one"]),
        query_lookup=_lookup(by_query),
        key_lookup=_lookup(by_key),
        left=left,
        right=right,
        keep=keep,
        mask=mask,
        query_buckets=_buckets([term.index for term in by_query], device),
        key_buckets=_buckets([term.index for term in by_key], device),
        value_buckets=_buckets(values, device),
        seed=torch.randint(2**62, (1,), device=device) if call.dropout_p > 0 else None,
        height=height,
        width=width,
        prefix=prefix,
        num_sums=sum(index.num_buckets for index in values),
        scale=float(call.scale),
        is_causal=call.is_causal,
        dropout_p=float(call.dropout_p),
        is_wide=call.query.dtype != call.dtype and call.is_wide,
        is_blocked=prefers_blocks(height, width) if is_blocked is None else is_blocked,
    )


def call_layouts(call: AttentionCall) -> set[TokenLayout]:
    """The layouts of the terms that read tables."""
    lookups = {term.index.layout for term in call.biases if isinstance(term, LookupBias)}
    return lookups | {term.index.layout for term in call.value_terms}


def _table(terms: Sequence[LookupBias]) -> Tensor | None:
    """Tables of the same offsets add up to one."""
    return functools.reduce(operator.add, map(_offset_table, terms)) if terms else None


def _offset_table(term: LookupBias) -> Tensor:
    kept = None if term.memo is None else term.memo.get("offsets")
    if kept is not None:
        return kept
    lookup = term.lookup[..., 0, :].float()
    table = lookup.index_select(-1, offset_buckets(term.index, lookup.device))
    if term.memo is not None:
        term.memo.keep("offsets", table)
    return table


def _lookup(terms: Sequence[LookupBias]) -> Tensor | None:
    if not terms:
        return None
    parts = [term.lookup.float().transpose(-2, -1) for term in terms]
    images, heads = (max(part.shape[axis] for part in parts) for axis in (0, 1))
    return torch.cat([part.expand(images, heads, -1, -1) for part in parts], -2).contiguous()


def _factors(terms: Sequence[LowRankBias]) -> tuple[Tensor | None, Tensor | None]:
    if not terms:
        return None, None
    return _side_by_side([t.left for t in terms]), _side_by_side([t.right for t in terms])


def _side_by_side(factors: Sequence[Tensor]) -> Tensor:
    images, heads = (max(factor.shape[axis] for factor in factors) for axis in (0, 1))
    parts = [factor.float().expand(images, heads, -1, -1) for factor in factors]
    return torch.cat(parts, -1).contiguous()


def _masks(call: AttentionCall) -> tuple[Tensor | None, Tensor | None]:
    """(boolean, additive)."""
    keep, parts = None, [term.bias for term in call.biases if isinstance(term, DenseBias)]
    mask = call.mask_4d
    if mask is not None:
        if not torch.compiler.is_compiling() and mask.is_inference():
            mask = mask.clone()  # autograd could not keep it for backward
        if mask.dtype == torch.bool:
            keep = mask
        else:
            parts.append(mask)
    if len(parts) > 1:
        parts = [functools.reduce(operator.add, (part.float() for part in parts))]
    return keep, parts[0] if parts else None


def _buckets(indices: Sequence[PairIndex], device: torch.device) -> Tensor | None:
    return _bucket_tables(tuple(indices), device) if indices else None


@memoized
def _bucket_tables(indices: tuple[PairIndex, ...], device: torch.device) -> Tensor:
    """Of several indices, each with buckets of its own."""
    tables, start = [], 0
    for index in indices:
        tables.append(offset_buckets(index, device) + start)
        start += index.num_buckets
    return torch.stack(tables).to(torch.int32)


def _sizes(layout: TokenLayout) -> tuple[int, int, int]:
    return layout.height, layout.width, layout.prefix
