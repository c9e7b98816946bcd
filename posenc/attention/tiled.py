"""Attention one tile of scores after the other, with gradients: never an N x N tensor per image.

A tile is small enough for a processor's cache. Biases are read per tile, and read again in
backward, as flash attention recomputes its scores: memory grows with N, and learning a bias
costs little more than using one.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from posenc.attention.call import AttentionCall
from posenc.attention.parts import BiasPart, Tile, ValuePart, bias_parts
from posenc.memo import is_transformed

Tensors = tuple[Tensor, ...]

CPU_SCORES = 2**19  # of one tile and thread: 2 MiB in float32, measured best of 2**17 to 2**20
DEVICE_SCORES = 2**26


def rejects(call: AttentionCall) -> str | None:
    """Computes any terms, in eager mode and without dropout."""
    if not call.terms:
        return "there is no term to read per tile"
    if call.dropout_p > 0:
        return "backward computes the attention again, but could not drop the same weights"
    if is_transformed(call.query, call.key, call.value):
        return "a loop over tiles is not for torch.compile, export and function transforms"
    return None


def compute(call: AttentionCall) -> Tensor:
    """`[B, heads, N, Dv]`."""
    query, key, value = (x.to(call.dtype) for x in (call.query, call.key, call.value))
    biases = bias_parts(call)
    values = [ValuePart(term, call.dtype) for term in call.value_terms]
    plan = _Plan(call.scale, call.attn_mask is not None, biases, values)
    tensors = [tensor for part in biases for tensor in part.tensors]
    tensors += [tensor for part in values for tensor in part.tensors]
    out: Tensor = _TiledAttention.apply(plan, query, key, value, *tensors)
    return out.to(call.query.dtype)


@dataclass(frozen=True, eq=False)
class _Plan:
    """All that is not a differentiable tensor."""

    scale: float
    is_masked: bool
    biases: Sequence[BiasPart]
    values: Sequence[ValuePart]

    def split(self, tensors: Sequence[Any]) -> tuple[list[tuple[BiasPart, Any]], list[Any]]:
        """Each bias with its own, and those of the values, one each."""
        rest = list(tensors)
        biases = [(part, tuple(rest.pop(0) for _ in part.tensors)) for part in self.biases]
        return biases, rest


class _TiledAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, plan: _Plan, query: Tensor, key: Tensor, value: Tensor, *tensors: Tensor
    ) -> Tensor:
        batch, heads, tokens, _ = query.shape
        # Tokens before heads, as SDPA returns it: a model's transpose and reshape is then free.
        out = value.new_empty(batch, tokens, heads, value.shape[-1]).transpose(1, 2)
        keeps = any(ctx.needs_input_grad)
        all_sums = [
            query.new_empty(batch, heads, tokens, part.buckets) if keeps else query.new_empty(0)
            for part in plan.values
        ]
        scores = _Scores(plan, query, key, tensors)
        for tiles in scores.groups():
            shared = scores.shared(tiles[0])
            for tile in tiles:
                attention = scores.attention(tile, shared)
                result = _matmul(attention, tile.of(value))
                for part, table, kept in zip(plan.values, scores.tables, all_sums, strict=True):
                    sums = part.sums(attention, tile)
                    result += part.read(table, sums, tile)
                    if keeps:
                        tile.rows_of(kept).copy_(sums)
                tile.rows_of(out).copy_(result)
        ctx.plan = plan
        ctx.save_for_backward(query, key, value, out, *tensors, *all_sums)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, out_grad: Tensor) -> tuple[Tensor | None, ...]:
        backward = _Backward(ctx.plan, out_grad, ctx.saved_tensors, ctx.needs_input_grad[4:])
        backward.run()
        return None, *backward.grads()


class _Scores:
    """The attention of every tile, computed from the biases' tensors when it is needed."""

    def __init__(self, plan: _Plan, query: Tensor, key: Tensor, tensors: Sequence[Tensor]) -> None:
        self.plan, self.query, self.key = plan, query, key
        biases, self.tables = plan.split(tensors)
        # Biases that are the same for all images are read once for all of them.
        self.static = [(part, own) for part, own in biases if is_static(own)]
        self.per_image = [(part, own) for part, own in biases if not is_static(own)]

    def groups(self) -> Iterator[list[Tile]]:
        """Tiles with the same heads and rows, for all images."""
        batch, heads, tokens, _ = self.query.shape
        per_tile = tile_sizes(batch, heads, tokens, _num_scores(self.query.device))
        images, some_heads, rows = (
            _cut(total, size) for total, size in zip((batch, heads, tokens), per_tile, strict=True)
        )
        for head in some_heads:
            for row in rows:
                yield [Tile(image, head, row) for image in images]

    def shared(self, tile: Tile) -> Tensor | None:
        """The sum of the biases that are the same for all images."""
        return _sum(part.read(own, tile) for part, own in self.static)

    def attention(self, tile: Tile, shared: Tensor | None) -> Tensor:
        """`[images, heads, rows, N]`; a fully masked row is zero."""
        query, key = tile.rows_of(self.query), tile.of(self.key)
        shape = torch.Size((*query.shape[:3], key.shape[2]))
        scores = self._biases(tile, shared, shape)
        scores.flatten(0, 1).baddbmm_(
            query.flatten(0, 1), key.flatten(0, 1).transpose(-2, -1), alpha=self.plan.scale
        )
        if not self.plan.is_masked:
            return scores.softmax(-1)
        empty = scores.amax(-1, keepdim=True) == float("-inf")
        return scores.softmax(-1).masked_fill_(empty, 0.0)

    def _biases(self, tile: Tile, shared: Tensor | None, shape: torch.Size) -> Tensor:
        """Their sum, in memory of its own: the scores are added in place."""
        biases = [part.read(own, tile) for part, own in self.per_image]
        is_fresh = len(biases) > 1 or all(part.is_fresh for part, _ in self.per_image)
        if shared is not None:
            is_fresh = bool(biases)
            biases.append(shared)
        if not biases:
            return self.query.new_zeros(shape)
        total = functools.reduce(operator.add, biases)
        if is_fresh and total.shape == shape:
            return total
        return total.expand(shape).clone(memory_format=torch.contiguous_format)


class _Backward:
    """The gradients, summed tile by tile."""

    def __init__(
        self,
        plan: _Plan,
        out_grad: Tensor,
        saved: Sequence[Tensor],
        needed: Sequence[bool],
    ) -> None:
        query, key, value, out, *rest = saved
        tensors, self.all_sums = rest[: len(needed)], rest[len(needed) :]
        self.scores = _Scores(plan, query, key, tensors)
        self.plan, self.value, self.out, self.out_grad = plan, value, out, out_grad
        self.query_grad, self.key_grad, self.value_grad = map(_zeros, (query, key, value))
        self.tensor_grads = [
            _zeros(tensor) if need else None for tensor, need in zip(tensors, needed, strict=True)
        ]
        biases, self.table_grads = plan.split(self.tensor_grads)
        self.bias_grads = {id(part): grads for part, grads in biases}

    def grads(self) -> list[Tensor | None]:
        """Of query, key, value and the tensors."""
        return [self.query_grad, self.key_grad, self.value_grad, *self.tensor_grads]

    def run(self) -> None:
        """All tiles."""
        for tiles in self.scores.groups():
            shared = self.scores.shared(tiles[0])
            total = None
            for tile in tiles:
                grad = self.step(tile, self.scores.attention(tile, shared))
                self.collect(self.scores.per_image, tile, grad)
                if shared is not None:
                    grad = grad.sum(0, keepdim=True)
                    total = grad if total is None else total.add_(grad)
            if total is not None:
                self.collect(self.scores.static, tiles[0], total)

    def step(self, tile: Tile, attention: Tensor) -> Tensor:
        """Gradients of query, key, value and value tables; returns that of the scores."""
        scale, out_grad = self.plan.scale, tile.rows_of(self.out_grad)
        query, key = tile.rows_of(self.scores.query), tile.of(self.scores.key)
        tile.of(self.value_grad).add_(_matmul(attention.transpose(-2, -1), out_grad))
        grad = _matmul(out_grad, tile.of(self.value).transpose(-2, -1))
        for part, table, table_grad, sums in zip(
            self.plan.values, self.scores.tables, self.table_grads, self.all_sums, strict=True
        ):
            part.add_to_gradient(grad, table, out_grad, tile)
            if table_grad is not None:
                part.collect(table_grad, tile.rows_of(sums), out_grad, tile)
        # Through softmax: sum_j attention_ij grad_ij = out_i . out_grad_i.
        grad.sub_((out_grad * tile.rows_of(self.out)).sum(-1, keepdim=True)).mul_(attention)
        tile.rows_of(self.query_grad).copy_(_matmul(grad, key).mul_(scale))
        tile.of(self.key_grad).add_(_matmul(grad.transpose(-2, -1), query), alpha=scale)
        return grad

    def collect(self, biases: Iterable[tuple[BiasPart, Tensors]], tile: Tile, grad: Tensor) -> None:
        """Gradients of the biases' tensors, from that of the scores."""
        for part, tensors in biases:
            part.collect(self.bias_grads[id(part)], tensors, tile, grad)


def is_static(tensors: Tensors) -> bool:
    """Whether all images share them."""
    return all(tensor.shape[0] == 1 for tensor in tensors)


def tile_sizes(batch: int, heads: int, tokens: int, scores: int) -> tuple[int, int, int]:
    """Images, heads and query rows of a tile with about this many scores."""
    rows = max(1, scores // tokens)
    if rows < tokens:
        return 1, 1, rows
    pairs = max(1, scores // tokens**2)
    # Along images or heads, not both: such a slice of a packed projection needs no copy.
    return (min(batch, pairs), 1, tokens) if batch > heads else (1, min(heads, pairs), tokens)


def _num_scores(device: torch.device) -> int:
    return CPU_SCORES * torch.get_num_threads() if device.type == "cpu" else DEVICE_SCORES


def _cut(total: int, size: int) -> list[slice]:
    """Slices of about equal length."""
    count = -(-total // size)
    edges = [total * i // count for i in range(count + 1)]
    return [slice(*edge) for edge in itertools.pairwise(edges)]


def _matmul(left: Tensor, right: Tensor) -> Tensor:
    """Of slices along images or heads: flattening them is free."""
    result = torch.bmm(left.flatten(0, 1), right.flatten(0, 1))
    return result.unflatten(0, left.shape[:2])


def _sum(biases: Iterable[Tensor]) -> Tensor | None:
    parts = list(biases)
    return functools.reduce(operator.add, parts) if parts else None


def _zeros(tensor: Tensor) -> Tensor:
    return torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device)
