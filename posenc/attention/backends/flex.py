"""PyTorch's FlexAttention: biases and mask are added to each score inside the fused kernel.

Only by name, `backend="flex"`. Lookups stay small in memory: the bucket of a pair is computed,
no `N x N` map is read. Gradients of terms are summed by atomic additions, in no fixed order.

Not measured: the mathematics is tested on the CPU, and the kernels that PyTorch 2.14 generates
for it were compiled for an H100, but none was run on a device yet.

Each new size, dtype and kind of terms is compiled once. Beyond
`torch._dynamo.config.recompile_limit` PyTorch raises; its unfused fallback is never used.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from posenc.attention.call import AttentionCall
from posenc.pairs import PairIndex
from posenc.terms import DenseBias, LookupBias, LowRankBias

MIN_WIDTH = 16  # of the kernels' matrix products
MAX_RANK = 32  # each column is a tensor of its own for the kernel; cautious, not tuned

# With more stages the kernel prefetches what is read for each pair: 272 kB of shared memory for
# one lookup in bfloat16, where an H100 has 227 and PyTorch 2.14 starts again with one stage. With
# one, all kinds of terms together need 80 kB.
KERNEL_OPTIONS = {"num_stages": 1}

Read = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # (batch, head, query, key) -> value
ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def rejects(call: AttentionCall) -> str | None:
    """Computes sums of biases, in at most float32 and on CUDA."""
    return _rejects_terms(call) or _rejects_kernel(call)


def compute(call: AttentionCall) -> Tensor:
    """`[B, heads, N, Dv]`; the kernel gives 0 for a fully masked row."""
    flex_attention = _import() if torch.compiler.is_compiling() else _compiled()
    return flex_attention(
        call.query,
        call.key,
        call.value,
        score_mod=score_mod(call),
        scale=call.scale,
        kernel_options=KERNEL_OPTIONS,
    )


def score_mod(call: AttentionCall) -> ScoreMod:
    """Adds the biases and the mask to a score, which FlexAttention has scaled already."""
    reads = [read for term in call.biases for read in _reads(term, call)]
    keep = None
    if (mask := call.mask_4d) is not None:
        mask = mask.expand(-1, -1, -1, call.key.shape[2])
        if mask.dtype == torch.bool:
            keep = _entry(mask)
        else:
            reads.append(_entry(mask.to(call.dtype)))

    def modify(score: Tensor, batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        for read in reads:
            score = score + read(batch, head, i, j)
        if keep is None:
            return score
        return torch.where(keep(batch, head, i, j), score, float("-inf"))

    return modify


def _rejects_terms(call: AttentionCall) -> str | None:
    if call.value_terms:
        return "ValueLookup needs the attention matrix, which fused attention does not return"
    if not call.biases:
        return "nothing to add, use sdpa"
    rank = sum(term.left.shape[-1] for term in call.biases if isinstance(term, LowRankBias))
    if rank > MAX_RANK:
        return f"low-rank factors of {rank} columns, more than {MAX_RANK}"
    if torch.are_deterministic_algorithms_enabled() and call.trains_biases:
        return "FlexAttention sums the gradients of terms in no fixed order, not deterministically"
    return None


def _rejects_kernel(call: AttentionCall) -> str | None:
    widths = call.query.shape[-1], call.value.shape[-1]
    if call.dropout_p > 0:
        return "FlexAttention has no dropout"
    if call.query.dtype == torch.float64:
        return "FlexAttention accumulates in float32, the query is torch.float64"
    if min(widths) < MIN_WIDTH:
        return (
            f"FlexAttention needs a head_dim of {MIN_WIDTH} or more, got {widths[0]} and "
            f"{widths[1]} for values"
        )
    if call.query.device.type != "cuda":
        return f"FlexAttention is used on CUDA only, the query is on {call.query.device.type}"
    return None


def _import() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention


@functools.cache
def _compiled() -> Callable[..., Any]:
    """Uncompiled it would hold the matrix of scores; a whole graph never falls back to that."""
    return torch.compile(_import(), dynamic=False, fullgraph=True)


def _reads(term: Any, call: AttentionCall) -> list[Read]:
    """Functions of (batch, head, query, key) whose sum is the bias."""
    if isinstance(term, DenseBias):
        return [_entry(term.bias.to(call.dtype))]
    if isinstance(term, LookupBias):
        return [_lookup(term, call)]
    factors = _columns(term.left, call), _columns(term.right, call)
    return [_product(left, right) for left, right in zip(*factors, strict=True)]


def _lookup(term: LookupBias, call: AttentionCall) -> Read:
    entry, bucket = _entry(term.lookup.to(call.dtype)), _bucket(term.index, call.query.device)
    by_query = term.side == "query"
    return lambda batch, head, i, j: entry(batch, head, i if by_query else j, bucket(i, j))


def _product(left: Callable[..., Tensor], right: Callable[..., Tensor]) -> Read:
    return lambda batch, head, i, j: left(batch, head, i) * right(batch, head, j)


def _columns(factor: Tensor, call: AttentionCall) -> list[Callable[..., Tensor]]:
    """One tensor a column: the kernel has no gradient for a tensor that is read twice."""
    columns = factor.to(call.dtype).movedim(-1, 0).contiguous()
    return [_entry(column) for column in columns.unbind()]


def _entry(tensor: Tensor) -> Callable[..., Tensor]:
    """Reads one entry; axes of size 1, but for the last, are broadcast.

    Always reads a tensor of its own: the kernel has no gradient for one that is read twice, and
    terms may share a tensor. Not a view of it, either: up to PyTorch 2.11 what is captured by the
    compiled kernel and is a view gets no gradient, without a word.
    """
    last = tensor.dim() - 1
    single = tuple(axis for axis in range(last) if tensor.shape[axis] == 1)
    axes = tuple(axis for axis in range(last + 1) if axis not in single)
    own = tensor.squeeze(single)
    own = own.clone() if own.requires_grad else own
    return lambda *index: own[tuple(index[axis] for axis in axes)]


def _bucket(index: PairIndex, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """The bucket of pair (i, j), without the `N x N` map."""
    table = index.offset_table(device)
    return lambda i, j: table.buckets[table.query[i] - table.key[j]]
