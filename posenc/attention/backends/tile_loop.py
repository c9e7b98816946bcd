"""The loop over tiles of scores, forward and backward, on plain tensors."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from posenc.attention.backends.tile_terms import Tensors, Tile, TileBias, TileValues
from posenc.functional.precision import without_autocast

NEGLIGIBLE = 80.0  # logits below the largest: a weight of 2e-35


@dataclass(frozen=True, eq=False)
class Plan:
    """All that is not a tensor."""

    scale: float
    may_mask_rows: bool
    is_wide: bool
    tile_scores: int  # at most, of a tile
    biases: Sequence[tuple[TileBias, int]]  # and how many tensors each has
    values: Sequence[TileValues]

    def split(self, tensors: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Tuples of those of each bias, and those of the values, one each."""
        rest = iter(tensors)
        biases = [tuple(itertools.islice(rest, count)) for _, count in self.biases]
        return biases, list(rest)


def run_forward(
    plan: Plan,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tensors: Sequence[Tensor],
    trains: bool,
    keeps: bool,
) -> tuple[Tensor, list[Tensor | None], list[Tensor]]:
    """The output `[B, N, heads, Dv]`, and for backward the sums and the attention of each tile."""
    batch, heads, tokens, _ = query.shape
    out = value.new_empty(batch, tokens, heads, value.shape[-1])
    scores = _Scores(plan, query, key, tensors)
    kept: list[Tensor] = []
    all_sums = [
        query.new_empty(batch, heads, tokens, part.index.num_buckets)
        if trains and part.keeps_sums
        else None
        for part in plan.values
    ]
    for tiles in scores.groups():
        shared = scores.shared(tiles[0])
        for tile in tiles:
            attention = scores.attention(tile, shared, keeps)
            if keeps:
                kept.append(attention)
            result = _matmul(attention, tile.of(value))
            for part, table, sums in zip(plan.values, scores.tables, all_sums, strict=True):
                now = part.sums(attention, tile)
                result += part.read(table, now, tile)
                if sums is not None:
                    tile.queries_of(sums).copy_(now)
            tile.queries_of(out.transpose(1, 2)).copy_(result)
    return out, all_sums, kept


def run_backward(
    plan: Plan,
    inputs: Tensors,
    tensors: Tensors,
    sums: Sequence[Tensor | None],
    kept: Tensors,
    needs: Sequence[bool],
    out_grad: Tensor,
) -> list[Tensor | None]:
    """The gradients of query, key, value and the tensors, from what forward returned.

    `inputs` are query, key, value and the output.
    """
    backward = _Backward(plan, inputs, tensors, sums, kept, needs)
    with without_autocast(out_grad.device):
        backward.run(out_grad.transpose(1, 2))
    return backward.grads


class _Scores:
    """The attention of every tile, computed from the biases' tensors when it is needed."""

    def __init__(self, plan: Plan, query: Tensor, key: Tensor, tensors: Sequence[Tensor]) -> None:
        self.plan, self.query, self.key = plan, query, key
        biases, self.tables = plan.split(tensors)
        parts = [part for part, _ in plan.biases]
        self.biases: list[tuple[TileBias, Tensors]] = list(zip(parts, biases, strict=True))
        self._scores, self._attention = _Memory(query), _Memory(query)

    def groups(self) -> Iterator[list[Tile]]:
        """Tiles with the same queries and heads, for all images."""
        batch, heads, tokens, _ = self.query.shape
        return tile_groups(batch, heads, tokens, self.plan.tile_scores)

    def shared(self, tile: Tile) -> Tensor | None:
        """The sum of the biases that are the same for all images, read once for all of them."""
        biases = [part.read(own, tile) for part, own in self.biases if is_static(own)]
        return functools.reduce(operator.add, biases) if biases else None

    def attention(self, tile: Tile, shared: Tensor | None, keeps: bool = False) -> Tensor:
        """`[images, heads, queries, N]`, until the next tile if not kept.

        A fully masked row is zero.
        """
        query, key = tile.queries_of(self.query), tile.of(self.key)
        shape = torch.Size((*query.shape[:3], key.shape[2]))
        scores = self._scores.of(shape)
        self._add_up(scores, tile, shared)
        scores.view(shape[0] * shape[1], *shape[2:]).baddbmm_(
            query.flatten(0, 1), key.flatten(0, 1).transpose(-2, -1), alpha=self.plan.scale
        )
        if self.plan.is_wide and not self.plan.may_mask_rows:
            # Else far keys get subnormal weights, with which processors compute slowly.
            torch.maximum(scores, scores.amax(-1, keepdim=True) - NEGLIGIBLE, out=scores)
        attention = query.new_empty(shape) if keeps else self._attention.of(shape)
        torch.softmax(scores, -1, out=attention)
        if self.plan.may_mask_rows:
            attention.masked_fill_(scores.amax(-1, keepdim=True) == float("-inf"), 0.0)
        return attention

    def _add_up(self, scores: Tensor, tile: Tile, shared: Tensor | None) -> None:
        """The sum of all biases, in the memory of the scores, which are then added in place."""
        parts = list(self.per_image())
        if not parts:
            scores.zero_() if shared is None else scores.copy_(shared)
            return
        (first, tensors), *others = parts
        first.write_to(scores, tensors, tile)
        for part, own in others:
            part.add_to(scores, own, tile)
        if shared is not None:
            scores.add_(shared)

    def per_image(self) -> Iterator[tuple[TileBias, Tensors]]:
        """The biases that differ between images."""
        return ((part, own) for part, own in self.biases if not is_static(own))


class _Memory:
    """Of one tile after the other: the pages of new memory cost more than what is done there."""

    def __init__(self, like: Tensor) -> None:
        self._flat = like.new_empty(0)

    def of(self, shape: torch.Size) -> Tensor:
        """Contiguous, whatever is in it."""
        size = shape.numel()
        if self._flat.numel() < size:
            self._flat = self._flat.new_empty(size)
        return self._flat[:size].view(shape)


class _Backward:
    """The gradients, summed tile by tile."""

    def __init__(
        self,
        plan: Plan,
        inputs: Tensors,
        tensors: Tensors,
        all_sums: Sequence[Tensor | None],
        kept: Tensors,
        needed: Sequence[bool],
    ) -> None:
        query, key, self.value, out = inputs
        self.plan, self.out, self.all_sums = plan, out.transpose(1, 2), all_sums
        self.kept = iter(kept) if kept else None
        self.scores = _Scores(plan, query, key, tensors)
        leaves = (query, key, self.value, *tensors)
        self.grads = [
            torch.zeros(leaf.shape, dtype=leaf.dtype, device=leaf.device) if need else None
            for leaf, need in zip(leaves, needed, strict=True)
        ]
        self.bias_grads, self.table_grads = plan.split(self.grads[3:])

    def run(self, out_grad: Tensor) -> None:
        """All tiles."""
        for tiles in self.scores.groups():
            shared = None if self.kept else self.scores.shared(tiles[0])
            total = None
            for tile in tiles:
                attention = next(self.kept) if self.kept else self.scores.attention(tile, shared)
                grad = self._through_attention(tile, attention, out_grad)
                self._to_biases(tile, grad, static=False)
                if self._has_static:
                    grad = grad.sum(0, keepdim=True) if len(grad) > 1 else grad
                    total = grad if total is None else total.add_(grad)
            if total is not None:  # one scatter into the table for all images
                self._to_biases(tiles[0], total, static=True)

    @property
    def _has_static(self) -> bool:
        return any(
            is_static(own) and any(grad is not None for grad in grads)
            for (_, own), grads in zip(self.scores.biases, self.bias_grads, strict=True)
        )

    def _through_attention(self, tile: Tile, attention: Tensor, all_out_grad: Tensor) -> Tensor:
        """Gradients of query, key, value and value tables; returns that of the scores."""
        query_grad, key_grad, value_grad = self.grads[:3]
        scale, out_grad = self.plan.scale, tile.queries_of(all_out_grad)
        if value_grad is not None:
            tile.of(value_grad).add_(_matmul(attention.transpose(-2, -1), out_grad))
        grad = _matmul(out_grad, tile.of(self.value).transpose(-2, -1))
        self._through_tables(tile, attention, grad, out_grad)
        # Through softmax: sum_j attention_ij grad_ij = out_i . out_grad_i.
        grad.sub_((out_grad * tile.queries_of(self.out)).sum(-1, keepdim=True)).mul_(attention)
        if query_grad is not None:
            of_query = _matmul(grad, tile.of(self.scores.key)).mul_(scale)
            tile.queries_of(query_grad).copy_(of_query)
        if key_grad is not None:
            of_key = _matmul(grad.transpose(-2, -1), tile.queries_of(self.scores.query))
            tile.of(key_grad).add_(of_key, alpha=scale)
        return grad

    def _through_tables(
        self, tile: Tile, attention: Tensor, grad: Tensor, out_grad: Tensor
    ) -> None:
        """Adds to the gradient of the attention, and to those of the value tables."""
        for part, table, table_grad, kept in zip(
            self.plan.values, self.scores.tables, self.table_grads, self.all_sums, strict=True
        ):
            part.add_to_gradient(grad, table, out_grad, tile)
            if table_grad is not None:
                sums = part.sums(attention, tile) if kept is None else tile.queries_of(kept)
                part.collect(table_grad, sums, out_grad, tile)

    def _to_biases(self, tile: Tile, grad: Tensor, static: bool) -> None:
        for (part, own), grads in zip(self.scores.biases, self.bias_grads, strict=True):
            if is_static(own) == static:
                part.collect(grads, own, tile, grad)


def is_static(tensors: Tensors) -> bool:
    """Whether all images share them."""
    return all(tensor.shape[0] == 1 for tensor in tensors)


def tile_groups(batch: int, heads: int, tokens: int, scores: int) -> Iterator[list[Tile]]:
    """Tiles with the same queries and heads, for all images."""
    sizes = tile_sizes(batch, heads, tokens, scores)
    images, some_heads, queries = map(_cut, (batch, heads, tokens), sizes)
    # Images are innermost: they share the static biases, which are then read once for all.
    for some, head in itertools.product(queries, some_heads):
        yield [Tile(image, head, some) for image in images]


def tile_sizes(batch: int, heads: int, tokens: int, scores: int) -> tuple[int, int, int]:
    """Images, heads and queries of a tile with about this many scores."""
    queries = max(1, scores // tokens)
    if queries < tokens:
        return 1, 1, queries
    pairs = max(1, scores // tokens**2)
    # Along images or heads, not both: such a slice of a packed projection needs no copy.
    return (min(batch, pairs), 1, tokens) if batch > heads else (1, min(heads, pairs), tokens)


def _cut(total: int, size: int) -> list[slice]:
    """Slices of about equal length; one that is empty when there is nothing."""
    count = max(1, -(-total // max(1, size)))
    edges = [total * i // count for i in range(count + 1)]
    return [slice(*edge) for edge in itertools.pairwise(edges)]


def _matmul(left: Tensor, right: Tensor) -> Tensor:
    """Of slices along images or heads: flattening them is free."""
    result = torch.bmm(left.flatten(0, 1), right.flatten(0, 1))
    return result.unflatten(0, left.shape[:2])
