"""What the terms of a call contribute to one tile of scores, forward and backward.

A part knows how to read slices of its tensors, but does not hold them: autograd does, so that
activation checkpointing can let them go. A dimension of size 1 is shared by all tiles.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from posenc.attention.call import AttentionCall
from posenc.layout import TokenLayout
from posenc.pairs import add_pairs, read_pairs, sum_buckets
from posenc.terms import DenseBias, LookupBias

Tensors = tuple[Tensor, ...]
Grads = Sequence[Tensor | None]  # buffers of the tensors' shapes, None where none is needed


@dataclass(frozen=True)
class Tile:
    """Some images, heads and queries of `[B, heads, N, N]`."""

    images: slice
    heads: slice
    queries: slice

    @property
    def shape(self) -> tuple[int, ...]:
        """Of its scores, without the keys."""
        return tuple(part.stop - part.start for part in (self.images, self.heads, self.queries))

    def of(self, tensor: Tensor) -> Tensor:
        """The images and heads of the tile, a view."""
        return tensor[
            self.images if tensor.shape[0] > 1 else slice(None),
            self.heads if tensor.shape[1] > 1 else slice(None),
        ]

    def queries_of(self, tensor: Tensor) -> Tensor:
        """The images, heads and queries of the tile, a view."""
        return self.of(tensor)[:, :, self.queries if tensor.shape[2] > 1 else slice(None)]


class Pairs(Protocol):
    """What is asked of a `PairIndex`; the operator of compiled code has another answer."""

    @property
    def layout(self) -> TokenLayout:
        """The tokens."""
        ...

    @property
    def num_buckets(self) -> int:
        """Number of buckets."""
        ...

    @property
    def axis(self) -> str | None:
        """The axis that the bucket of a pair depends on, None for both."""
        ...

    def gather_index(
        self, read_by: str, device: torch.device, block: slice | None = None
    ) -> Tensor:
        """Where the pairs of some queries read."""
        ...

    def line_index(self, read_by: str, device: torch.device) -> Tensor:
        """Where each token reads for each line."""
        ...


class _GatherIndex:
    """Where the queries of a tile read; kept until others come, since many tiles share them."""

    def __init__(self, index: Pairs, read_by: str) -> None:
        self.index, self.read_by = index, read_by
        self._block: tuple[slice, Tensor] | None = None

    def of(self, tile: Tile, device: torch.device) -> Tensor:
        """`[queries, N]` int64."""
        if self._block is None or self._block[0] != tile.queries:
            where = self.index.gather_index(self.read_by, device, tile.queries)
            self._block = (tile.queries, where)
        return self._block[1]


class TileBias(ABC):
    """How one bias is read from its tensors, and its gradient summed into theirs."""

    @abstractmethod
    def read(self, tensors: Tensors, tile: Tile) -> Tensor:
        """What is added to the scores: `[images or 1, heads or 1, queries or 1, N or 1]`."""

    def write_to(self, scores: Tensor, tensors: Tensors, tile: Tile) -> None:
        """Writes it over what is there."""
        scores.copy_(self.read(tensors, tile))

    def add_to(self, scores: Tensor, tensors: Tensors, tile: Tile) -> None:
        """Adds it in place."""
        scores += self.read(tensors, tile)

    @abstractmethod
    def collect(self, grads: Grads, tensors: Tensors, tile: Tile, scores: Tensor) -> None:
        """Adds what follows from `scores`, the gradient of the scores."""


class TileLookup(TileBias):
    """`LookupBias`, of one contiguous tensor: gathered from the flattened table."""

    def __init__(self, index: Pairs, read_by: str) -> None:
        self.gather_index = _GatherIndex(index, read_by)

    def read(self, tensors: Tensors, tile: Tile) -> Tensor:
        """By gathering."""
        lookup = tile.of(tensors[0])
        return read_pairs(lookup.flatten(-2), self.gather_index.of(tile, lookup.device))

    def write_to(self, scores: Tensor, tensors: Tensors, tile: Tile) -> None:
        """By gathering straight into the scores, where no image or head shares the table."""
        flat = tile.of(tensors[0]).flatten(-2)
        if flat.shape[:2] != scores.shape[:2]:
            super().write_to(scores, tensors, tile)
            return
        where = self.gather_index.of(tile, flat.device).reshape(-1)
        torch.gather(flat, -1, where.expand(*flat.shape[:-1], -1), out=scores.flatten(-2))

    def collect(self, grads: Grads, tensors: Tensors, tile: Tile, scores: Tensor) -> None:
        """By sums per entry."""
        if grads[0] is None:
            return
        target = tile.of(grads[0])
        batch, heads, entries, buckets = target.shape
        # `view` raises where `reshape` would copy, and the sums would go into the copy.
        target = target.view(batch, heads, entries * buckets)
        scores = scores.sum_to_size(batch, heads, *scores.shape[2:])
        add_pairs(target, self.gather_index.of(tile, target.device), scores)


class TileLines(TileBias):
    """`LookupBias` along one axis, read by the query: once for each row (or column) of keys.

    Spreading these numbers over the keys is a copy, several times cheaper than gathering one for
    each pair, and its gradient is a sum.
    """

    def __init__(self, index: Pairs) -> None:
        self.index = index
        self.spread = -1 if index.axis == "rows" else -2  # of the keys as `[height, width]`

    def read(self, tensors: Tensors, tile: Tile) -> Tensor:
        """By gathering for lines."""
        values = self._values(tensors, tile)
        out = values.new_empty(*values.shape[:-1], self.index.layout.num_tokens)
        self._spread(out, values)
        return out

    def write_to(self, scores: Tensor, tensors: Tensors, tile: Tile) -> None:
        """Without a tensor of all pairs."""
        self._spread(scores, self._values(tensors, tile))

    def _spread(self, scores: Tensor, values: Tensor) -> None:
        for target, source in self._parts(scores, values):
            target.copy_(source)

    def add_to(self, scores: Tensor, tensors: Tensors, tile: Tile) -> None:
        """Without a tensor of all pairs."""
        for target, source in self._parts(scores, self._values(tensors, tile)):
            target += source

    def collect(self, grads: Grads, tensors: Tensors, tile: Tile, scores: Tensor) -> None:
        """By sums per line."""
        if grads[0] is None:
            return
        target = tile.of(grads[0])
        batch, heads, entries, buckets = target.shape
        scores = scores.sum_to_size(batch, heads, *scores.shape[2:])
        lines = self._grid(scores).sum(self.spread)
        if prefix := self.index.layout.prefix:
            lines = torch.cat([scores[..., :prefix].sum(-1, keepdim=True), lines], dim=-1)
        target = target.view(batch, heads, entries * buckets)
        add_pairs(target, self._gather_index(tile, target.device), lines)

    def _values(self, tensors: Tensors, tile: Tile) -> Tensor:
        """`[images, heads, queries, lines]`."""
        lookup = tile.of(tensors[0])
        return read_pairs(lookup.flatten(-2), self._gather_index(tile, lookup.device))

    def _parts(self, scores: Tensor, values: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Views of the scores with patches, and with prefix tokens, and what belongs there."""
        prefix = self.index.layout.prefix
        lines = values[..., 1:] if prefix else values
        grid = (self._grid(scores), lines.unsqueeze(self.spread))
        return [grid, (scores[..., :prefix], values[..., :1])] if prefix else [grid]

    def _gather_index(self, tile: Tile, device: torch.device) -> Tensor:
        """`[queries, lines]`, the line of prefix tokens first."""
        return self.index.line_index("query", device)[tile.queries]

    def _grid(self, scores: Tensor) -> Tensor:
        """The patches among the keys, a view: `[..., height, width]`."""
        layout = self.index.layout
        return scores[..., layout.prefix :].unflatten(-1, layout.grid)


class TileDense(TileBias):
    """`DenseBias`, or a float mask, of one tensor."""

    def read(self, tensors: Tensors, tile: Tile) -> Tensor:
        """A slice."""
        return tile.queries_of(tensors[0])

    def collect(self, grads: Grads, tensors: Tensors, tile: Tile, scores: Tensor) -> None:
        """A sum over what is shared."""
        if grads[0] is not None:
            _add(tile.queries_of(grads[0]), scores)


class TileLowRank(TileBias):
    """`LowRankBias`, of its factors: a thin product."""

    def read(self, tensors: Tensors, tile: Tile) -> Tensor:
        """`left right^T`."""
        left, right = tensors
        return tile.queries_of(left) @ tile.of(right).transpose(-2, -1)

    def collect(self, grads: Grads, tensors: Tensors, tile: Tile, scores: Tensor) -> None:
        """Of both factors."""
        left, right = tensors
        if grads[0] is not None:
            _add(tile.queries_of(grads[0]), scores @ tile.of(right))
        if grads[1] is not None:
            _add(tile.of(grads[1]), scores.transpose(-2, -1) @ tile.queries_of(left))


class TileKeep(TileBias):
    """A boolean mask, True = keep: minus infinity elsewhere."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def read(self, tensors: Tensors, tile: Tile) -> Tensor:
        """Zero or minus infinity."""
        keep = tile.queries_of(tensors[0])
        zeros = torch.zeros(keep.shape, dtype=self.dtype, device=keep.device)
        return zeros.masked_fill_(~keep, float("-inf"))

    def collect(self, grads: Grads, tensors: Tensors, tile: Tile, scores: Tensor) -> None:
        """None: a boolean has no gradient."""


class TileValues:
    """`ValueLookup`, of its table: the attention summed per bucket, times the table."""

    def __init__(self, index: Pairs) -> None:
        self.index = index
        self.buckets = _GatherIndex(index, "one")

    @property
    def keeps_sums(self) -> bool:
        """Whether backward gets the sums from forward: not if they outgrow the attention."""
        return self.index.num_buckets < self.index.layout.num_tokens

    def sums(self, attention: Tensor, tile: Tile) -> Tensor:
        """Attention per bucket: `[images, heads, queries, T]`."""
        buckets = self.buckets.of(tile, attention.device)
        return sum_buckets(attention, buckets, self.index.num_buckets)

    def read(self, table: Tensor, sums: Tensor, tile: Tile) -> Tensor:
        """What is added to the output: `[images, heads, queries, Dv]`."""
        return sums @ self._table(table, tile)

    def add_to_gradient(
        self, attention_grad: Tensor, table: Tensor, out_grad: Tensor, tile: Tile
    ) -> None:
        """Adds what the attention gets from its bucket sums."""
        lookup = out_grad @ self._table(table, tile).transpose(-2, -1)
        buckets = self.buckets.of(tile, lookup.device).expand(attention_grad.shape)
        attention_grad += torch.gather(lookup, -1, buckets)

    def collect(self, grad: Tensor, sums: Tensor, out_grad: Tensor, tile: Tile) -> None:
        """Adds the gradient of the table."""
        _add(self._table(grad, tile), (sums.transpose(-2, -1) @ out_grad).sum(0))

    def _table(self, table: Tensor, tile: Tile) -> Tensor:
        return table[tile.heads] if table.shape[0] > 1 else table


def tile_biases(call: AttentionCall) -> list[tuple[TileBias, Tensors]]:
    """The biases and the mask, each with its tensors."""
    parts = [_tile_bias(term, call.dtype) for term in call.biases]
    mask = call.mask_4d
    if mask is None:
        return parts
    if not torch.compiler.is_compiling() and mask.is_inference():
        mask = mask.clone()  # autograd could not keep it for backward
    if mask.dtype == torch.bool:
        return [*parts, (TileKeep(call.dtype), (mask,))]
    return [*parts, (TileDense(), (mask.to(call.dtype),))]


def _tile_bias(term: Any, dtype: torch.dtype) -> tuple[TileBias, Tensors]:
    if isinstance(term, LookupBias):
        is_line = term.index.axis is not None and term.read_by == "query"
        part = TileLines(term.index) if is_line else TileLookup(term.index, term.read_by)
        return part, (term.lookup.to(dtype).contiguous(),)
    if isinstance(term, DenseBias):
        return TileDense(), (term.bias.to(dtype),)
    return TileLowRank(), (term.left.to(dtype), term.right.to(dtype))


def _add(target: Tensor, values: Tensor) -> None:
    """Sums over what the target shares."""
    target += values.sum_to_size(target.shape)
