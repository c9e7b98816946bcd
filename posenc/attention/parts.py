"""What the terms of a call contribute to one tile of scores, forward and backward.

A part reads and writes slices of its tensors; a dimension of size 1 is shared by all tiles.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from posenc.attention.call import AttentionCall
from posenc.terms import BiasTerm, DenseBias, LookupBias, ValueLookup, add_pairs, read_pairs


@dataclass(frozen=True)
class Tile:
    """Some images, heads and query rows of `[B, heads, N, N]`."""

    images: slice
    heads: slice
    rows: slice

    def of(self, tensor: Tensor) -> Tensor:
        """The images and heads of the tile."""
        return tensor[
            self.images if tensor.shape[0] > 1 else slice(None),
            self.heads if tensor.shape[1] > 1 else slice(None),
        ]

    def rows_of(self, tensor: Tensor) -> Tensor:
        """The images, heads and query rows of the tile."""
        return self.of(tensor)[:, :, self.rows if tensor.shape[2] > 1 else slice(None)]


class BiasPart(ABC):
    """One bias. `tensors` are those that it reads; `grads` are buffers of their shapes, or None."""

    tensors: tuple[Tensor, ...]
    is_fresh = True  # whether `read` returns memory of its own

    @abstractmethod
    def read(self, tensors: Sequence[Tensor], tile: Tile) -> Tensor:
        """What is added to the scores: `[images or 1, heads or 1, rows or 1, N or 1]`."""

    @abstractmethod
    def collect(
        self, grads: Sequence[Tensor | None], tensors: Sequence[Tensor], tile: Tile, scores: Tensor
    ) -> None:
        """Adds the gradient that follows from `scores`, the gradient of the scores."""


class LookupPart(BiasPart):
    """`LookupBias`: read by position in the flattened table."""

    def __init__(self, term: LookupBias, dtype: torch.dtype) -> None:
        self.tensors = (term.lookup.to(dtype).contiguous(),)
        self.positions = term.positions()

    def read(self, tensors: Sequence[Tensor], tile: Tile) -> Tensor:
        """By gathering."""
        return read_pairs(tile.of(tensors[0]).flatten(-2), self.positions[tile.rows])

    def collect(
        self, grads: Sequence[Tensor | None], tensors: Sequence[Tensor], tile: Tile, scores: Tensor
    ) -> None:
        """By sums per position."""
        if grads[0] is None:
            return
        target = tile.of(grads[0]).flatten(-2)  # a view: a slice of contiguous memory
        scores = scores.sum_to_size(*target.shape[:2], *scores.shape[2:])
        add_pairs(target, self.positions[tile.rows], scores)


class DensePart(BiasPart):
    """`DenseBias`, and a float mask."""

    is_fresh = False

    def __init__(self, bias: Tensor, dtype: torch.dtype) -> None:
        self.tensors = (bias.to(dtype),)

    def read(self, tensors: Sequence[Tensor], tile: Tile) -> Tensor:
        """A slice."""
        return tile.rows_of(tensors[0])

    def collect(
        self, grads: Sequence[Tensor | None], tensors: Sequence[Tensor], tile: Tile, scores: Tensor
    ) -> None:
        """A sum over what is shared."""
        if grads[0] is None:
            return
        target = tile.rows_of(grads[0])
        target += scores.sum_to_size(target.shape)


class LowRankPart(BiasPart):
    """`LowRankBias`: a thin product."""

    def __init__(self, left: Tensor, right: Tensor, dtype: torch.dtype) -> None:
        self.tensors = (left.to(dtype), right.to(dtype))

    def read(self, tensors: Sequence[Tensor], tile: Tile) -> Tensor:
        """`left right^T`."""
        left, right = tensors
        return tile.rows_of(left) @ tile.of(right).transpose(-2, -1)

    def collect(
        self, grads: Sequence[Tensor | None], tensors: Sequence[Tensor], tile: Tile, scores: Tensor
    ) -> None:
        """Of both factors."""
        left, right = tensors
        if grads[0] is not None:
            target = tile.rows_of(grads[0])
            target += (scores @ tile.of(right)).sum_to_size(target.shape)
        if grads[1] is not None:
            target = tile.of(grads[1])
            target += (scores.transpose(-2, -1) @ tile.rows_of(left)).sum_to_size(target.shape)


class KeepPart(BiasPart):
    """A boolean mask, True = keep: minus infinity elsewhere."""

    def __init__(self, mask: Tensor, dtype: torch.dtype) -> None:
        self.tensors = (mask,)
        self.dtype = dtype

    def read(self, tensors: Sequence[Tensor], tile: Tile) -> Tensor:
        """Zero or minus infinity."""
        keep = tile.rows_of(tensors[0])
        zeros = torch.zeros(keep.shape, dtype=self.dtype, device=keep.device)
        return zeros.masked_fill_(~keep, float("-inf"))

    def collect(
        self, grads: Sequence[Tensor | None], tensors: Sequence[Tensor], tile: Tile, scores: Tensor
    ) -> None:
        """None: a boolean has no gradient."""


class ValuePart:
    """`ValueLookup`: the attention summed per bucket, times the table."""

    def __init__(self, term: ValueLookup, dtype: torch.dtype) -> None:
        self.tensors: tuple[Tensor, ...] = (term.table.to(dtype),)
        self.index = term.index.dense(term.table.device)
        self.buckets = term.index.num_buckets

    def sums(self, attention: Tensor, tile: Tile) -> Tensor:
        """Attention per bucket: `[images, heads, rows, T]`."""
        sums = attention.new_zeros(*attention.shape[:3], self.buckets)
        return sums.scatter_add_(-1, self._index(attention, tile), attention)

    def read(self, table: Tensor, sums: Tensor, tile: Tile) -> Tensor:
        """What is added to the output: `[images, heads, rows, Dv]`."""
        return sums @ self._table(table, tile)

    def add_to_gradient(
        self, attention_grad: Tensor, table: Tensor, out_grad: Tensor, tile: Tile
    ) -> None:
        """Adds what the attention gets from its bucket sums."""
        lookup = out_grad @ self._table(table, tile).transpose(-2, -1)
        attention_grad += torch.gather(lookup, -1, self._index(attention_grad, tile))

    def collect(self, grad: Tensor, sums: Tensor, out_grad: Tensor, tile: Tile) -> None:
        """Adds the gradient of the table."""
        target = self._table(grad, tile)
        each = sums.transpose(-2, -1) @ out_grad
        target += each.sum(0).sum_to_size(target.shape)

    def _table(self, table: Tensor, tile: Tile) -> Tensor:
        return table[tile.heads] if table.shape[0] > 1 else table

    def _index(self, attention: Tensor, tile: Tile) -> Tensor:
        return self.index[tile.rows].expand(attention.shape)


def bias_parts(call: AttentionCall) -> list[BiasPart]:
    """Of the biases and the mask."""
    parts = [_bias_part(term, call.dtype) for term in call.biases]
    if call.attn_mask is None:
        return parts
    mask = call.attn_mask[(None,) * (4 - call.attn_mask.dim())]
    if mask.dtype == torch.bool:
        return [*parts, KeepPart(mask, call.dtype)]
    return [*parts, DensePart(mask, call.dtype)]


def _bias_part(term: BiasTerm, dtype: torch.dtype) -> BiasPart:
    if isinstance(term, LookupBias):
        return LookupPart(term, dtype)
    if isinstance(term, DenseBias):
        return DensePart(term.bias, dtype)
    return LowRankPart(term.left, term.right, dtype)
