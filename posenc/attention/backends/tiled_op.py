"""The operator `posenc::tiled_attention`: the loop over tiles in a graph of `torch.compile`.

A graph holds tensors and numbers, so that each bias and value table travels as a row of numbers,
and what its `PairIndex` says as tensors; inside the operator they are parts of tiles again.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from posenc._torch import is_symbolic
from posenc.attention.backends.tile_loop import Plan, run_backward, run_forward, tile_groups
from posenc.attention.backends.tile_terms import (
    Pairs,
    Tensors,
    TileBias,
    TileDense,
    TileKeep,
    TileLines,
    TileLookup,
    TileLowRank,
    TileValues,
)
from posenc.layout import TokenLayout
from posenc.pairs import OffsetTable

LOOKUP, LINES, DENSE, LOW_RANK, KEEP, VALUES = range(6)
READ_BY = ("one", "query", "key")
AXES = ("rows", "cols")
NUM_INDICES = {LOOKUP: 3, LINES: 1, VALUES: 3}

_OPERANDS = (
    "Tensor query, Tensor key, Tensor value, Tensor[] tensors, Tensor[] indices, int[] rows, "
    "float scale, bool may_mask_rows, bool is_wide, int tile_scores"
)


class Row(NamedTuple):
    """What is not a tensor of a bias or a value table."""

    kind: int
    choice: int = 0  # of READ_BY or AXES
    num_buckets: int = 0
    height: int = 1
    width: int = 1
    prefix: int = 0


@dataclass(frozen=True, eq=False)
class GraphPairs:
    """A `PairIndex` as the graph has it: one of its answers, from tensors."""

    layout: TokenLayout
    num_buckets: int
    axis: str | None
    tensors: Tensors

    def gather_index(
        self, read_by: str, device: torch.device, block: slice | None = None
    ) -> Tensor:
        """From an offset table."""
        return OffsetTable(*self.tensors).gather_index(
            read_by, self.num_buckets, block or slice(None)
        )

    def line_index(self, read_by: str, device: torch.device) -> Tensor:
        """The tensor itself."""
        return self.tensors[0]


def compute(
    plan: Plan,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tensors: Sequence[Tensor],
    keeps: bool,
) -> Tensor:
    """`[B, N, heads, Dv]`, as `run_forward`."""
    described = [_describe(part, query.device) for part, _ in plan.biases]
    described += [_describe_values(part, query.device) for part in plan.values]
    rows = [number for row, _ in described for number in row]
    indices = [tensor for _, own in described for tensor in own]
    trains = torch.is_grad_enabled() and any(
        tensor.requires_grad for tensor in (query, key, value, *tensors)
    )
    numbers = (float(plan.scale), plan.may_mask_rows, plan.is_wide, plan.tile_scores)
    # The number of tiles is that of tensors in the graph: not with a batch of any size.
    keeps = keeps and trains and not is_symbolic(query.shape[0])
    inputs = (query, key, value, list(tensors), indices, rows)
    results: list[Tensor] = tiled_attention(*inputs, *numbers, trains, keeps)
    return results[0]


def _describe(part: TileBias, device: torch.device) -> tuple[Row, Tensors]:
    if isinstance(part, TileLookup):
        return _lookup_row(LOOKUP, part.gather_index.index, part.gather_index.read_by, device)
    if isinstance(part, TileLines):
        layout, index = part.index.layout, part.index
        axis = AXES.index(str(index.axis))
        row = Row(LINES, axis, index.num_buckets, layout.height, layout.width, layout.prefix)
        return row, (index.line_index("query", device),)
    kinds = {TileDense: DENSE, TileLowRank: LOW_RANK, TileKeep: KEEP}
    return Row(kinds[type(part)]), ()


def _describe_values(part: TileValues, device: torch.device) -> tuple[Row, Tensors]:
    return _lookup_row(VALUES, part.index, "one", device)


def _lookup_row(kind: int, index: Any, read_by: str, device: torch.device) -> tuple[Row, Tensors]:
    layout = index.layout
    sizes = (index.num_buckets, layout.height, layout.width, layout.prefix)
    return Row(kind, READ_BY.index(read_by), *sizes), tuple(index.offset_table(device))


def _rebuild(rows: Sequence[int], indices: Sequence[Tensor], dtype: torch.dtype) -> Iterator[Any]:
    """The parts that the rows describe, biases before values."""
    rest, numbers = iter(indices), iter(rows)
    while chunk := tuple(itertools.islice(numbers, len(Row._fields))):
        row = Row(*chunk)
        own = tuple(itertools.islice(rest, NUM_INDICES.get(row.kind, 0)))
        yield _part(row, own, dtype)


def _part(row: Row, own: Tensors, dtype: torch.dtype) -> TileBias | TileValues:
    if row.kind == DENSE:
        return TileDense()
    if row.kind == LOW_RANK:
        return TileLowRank()
    if row.kind == KEEP:
        return TileKeep(dtype)
    layout = TokenLayout(row.height, row.width, row.prefix)
    axis = AXES[row.choice] if row.kind == LINES else None
    index: Pairs = GraphPairs(layout, row.num_buckets, axis, own)
    if row.kind == LINES:
        return TileLines(index)
    return TileValues(index) if row.kind == VALUES else TileLookup(index, READ_BY[row.choice])


class _Operands(NamedTuple):
    """Arguments of the operator, without what backward does not need."""

    query: Tensor
    key: Tensor
    value: Tensor
    tensors: Sequence[Tensor]
    indices: Sequence[Tensor]
    rows: Sequence[int]
    scale: float
    may_mask_rows: bool
    is_wide: bool
    tile_scores: int

    def parts(self) -> tuple[list[TileBias], list[TileValues]]:
        """Biases, and value tables."""
        parts = list(_rebuild(self.rows, self.indices, self.query.dtype))
        values = [part for part in parts if isinstance(part, TileValues)]
        return [part for part in parts if isinstance(part, TileBias)], values

    def plan(self) -> Plan:
        """What `tiled` works with."""
        biases, values = self.parts()
        counts = [2 if isinstance(part, TileLowRank) else 1 for part in biases]
        numbers = (self.scale, self.may_mask_rows, self.is_wide, self.tile_scores)
        return Plan(*numbers, list(zip(biases, counts, strict=True)), values)


@torch.library.custom_op(
    "posenc::tiled_attention",
    mutates_args=(),
    schema=f"({_OPERANDS}, bool trains, bool keeps) -> Tensor[]",
)
def tiled_attention(*args: Any) -> list[Tensor]:
    """The output, then what backward gets from forward: sums per bucket, attention per tile."""
    *own, trains, keeps = args
    operands = _Operands(*own)
    inputs = (operands.query, operands.key, operands.value)
    out, sums, kept = run_forward(operands.plan(), *inputs, operands.tensors, trains, keeps)
    return [out, *(each for each in sums if each is not None), *kept]


@torch.library.custom_op(
    "posenc::tiled_attention_backward",
    mutates_args=(),
    schema=f"({_OPERANDS}, Tensor[] results, Tensor out_grad, bool[] needs) -> Tensor[]",
)
def tiled_attention_backward(*args: Any) -> list[Tensor]:
    """The gradients of query, key, value and the tensors, empty where none is needed."""
    *own, results, out_grad, needs = args
    operands = _Operands(*own)
    plan, (out, *rest) = operands.plan(), results
    sums = [rest.pop(0) if part.keeps_sums else None for part in plan.values]
    inputs = (operands.query, operands.key, operands.value, out)
    grads = run_backward(plan, inputs, tuple(operands.tensors), sums, tuple(rest), needs, out_grad)
    leaves = (*inputs[:3], *operands.tensors)
    return [
        leaf.new_empty(0) if grad is None else grad
        for leaf, grad in zip(leaves, grads, strict=True)
    ]


@tiled_attention.register_fake
def _(*args: Any) -> list[Tensor]:
    *own, trains, keeps = args
    operands = _Operands(*own)
    query, value = operands.query, operands.value
    batch, heads, tokens, _ = query.shape
    out = value.new_empty(batch, tokens, heads, value.shape[-1])
    if not trains:
        return [out]
    values = [part for part in operands.parts()[1] if part.keeps_sums]
    sums = [query.new_empty(batch, heads, tokens, part.index.num_buckets) for part in values]
    if not keeps:
        return [out, *sums]
    groups = tile_groups(batch, heads, tokens, operands.tile_scores)
    return [
        out,
        *sums,
        *(query.new_empty(*tile.shape, tokens) for tiles in groups for tile in tiles),
    ]


@tiled_attention_backward.register_fake
def _(*args: Any) -> list[Tensor]:
    *own, _results, _out_grad, needs = args
    query, key, value, tensors = own[:4]
    return [
        torch.empty(leaf.shape if need else 0, dtype=leaf.dtype, device=leaf.device)
        for leaf, need in zip((query, key, value, *tensors), needs, strict=True)
    ]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    operands = _Operands(*inputs[: len(_Operands._fields)])
    ctx.numbers = operands[5:]
    ctx.counts = (3, len(operands.tensors), len(operands.indices))
    tensors = (*operands[:3], *operands.tensors, *operands.indices)
    ctx.save_for_backward(*tensors, *output)


def _backward(ctx: Any, grads: Sequence[Tensor]) -> tuple[Any, ...]:
    saved = iter(ctx.saved_tensors)  # which may be asked for once
    inputs, tensors, indices = (list(itertools.islice(saved, count)) for count in ctx.counts)
    needs = [*ctx.needs_input_grad[:3], *ctx.needs_input_grad[3]]
    found = tiled_attention_backward(
        *inputs, tensors, indices, *ctx.numbers, list(saved), grads[0], needs
    )
    query, key, value, *others = (
        grad if need else None for grad, need in zip(found, needs, strict=True)
    )
    rest = len(ctx.numbers) + 2
    return query, key, value, others, [None] * len(indices), *[None] * rest


tiled_attention.register_autograd(_backward, setup_context=_setup_context)
