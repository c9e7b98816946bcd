"""Forward and backward as functions of tensors: memory, kernels, and sums in a fixed order.

Sums that many programs add to are atomic, in no fixed order. Where PyTorch is asked for
deterministic algorithms they are made of integers, whose sum has no order: multiples of a unit so
small that 62 bits just hold the largest sum that is possible.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from posenc.attention.kernels import blocks
from posenc.attention.kernels.backward import (
    Upstream,
    exact_deltas,
    key_gradients,
    query_gradients,
    row_deltas,
    table_gradient,
)
from posenc.attention.kernels.factors import fold, unfold_left, unfold_right
from posenc.attention.kernels.forward import forward
from posenc.attention.kernels.launch import Launcher, is_interpreted, read_only, rows
from posenc.attention.kernels.memory import empty, empty_forward, empty_gradients
from posenc.attention.kernels.operands import Operands

WEIGHT_UNITS = 2.0**40  # in 1; weights are at most 1 / (1 - dropout_p)
TABLE_PROGRAMS = 1024  # wanted: fewer would leave a large device idle
# Images that a program adds up, at least: a loop already in the two images of a trial (trial.py).
TABLE_IMAGES = 2
SMALLEST_SCALE = 1e-30  # in place of 0, since scores are divided by the scale


class Readable(NamedTuple):
    """Operands as the kernels take them."""

    operands: Operands
    is_folded: bool  # see factors.py

    def launcher(self, by_key: bool = False) -> Launcher:
        """For programs that own queries, or keys."""
        return Launcher(self.operands, self.is_folded, by_key)


def run_forward(operands: Operands) -> tuple[Tensor, Tensor, Tensor]:
    """(out, lse, sums), see `forward.py`."""
    given, readable = operands, _readable(operands)
    operands = readable.operands
    out, lse, sums = empty_forward(operands)
    if _is_empty(operands):
        return out.zero_().to(given.query.dtype), lse, sums.zero_()
    total = _Sums(sums.shape, sums, WEIGHT_UNITS)
    launch = readable.launcher()
    launch(
        "forward",
        forward,
        launch.query_tiles,
        *(launch.call, rows(out), lse, total.rows if operands.num_sums else None),
        *(launch.starts(operands.value_buckets), total.unit),
        sums=[total.buffer],
    )
    sums = total.result()
    if total.unit is not None:  # integers know no NaN
        sums = sums.masked_fill(lse.isnan()[:, :, None], float("nan"))
    return out.to(given.query.dtype), lse, sums


def run_backward(
    operands: Operands,
    out: Tensor,
    lse: Tensor,
    sums: Tensor,
    out_grad: Tensor,
    sums_grad: Tensor | None,
    needs: Sequence[bool],
) -> list[Tensor]:
    """Gradients of the first operands, empty where not needed."""
    given, readable = operands, _readable(operands)
    operands = readable.operands
    if _is_empty(operands):
        return [grad.zero_() for grad in empty_gradients(given, needs)]
    out, out_grad = (x.to(operands.query.dtype) for x in (out, out_grad))
    grads = _Backward(given, readable, out, lse, sums, out_grad, sums_grad, needs).run()
    if given.scale < 0:
        grads[0].neg_()
    return [
        grad.to(operand.dtype) if need and operand is not None else empty(given.query, 0)
        for grad, operand, need in zip(grads, given.differentiable, needs, strict=True)
    ]


class _Backward:
    def __init__(
        self,
        given: Operands,
        readable: Readable,
        out: Tensor,
        lse: Tensor,
        sums: Tensor,
        out_grad: Tensor,
        sums_grad: Tensor | None,
        needs: Sequence[bool],
    ) -> None:
        self.readable, self.operands, self.needs = readable, readable.operands, needs
        self.out, self.out_grad, self.lse = out, out_grad, lse
        self.sums, self.sums_grad = sums, sums_grad
        self.launch = readable.launcher()
        # The kernels write the first three in any case.
        likes = self.operands._replace(left=given.left, right=given.right)
        self.grads = empty_gradients(likes, [True, True, True, *needs[3:]])

    def run(self) -> list[Tensor]:
        """Launches what is needed."""
        delta = self._deltas()
        self.units = _units(self.operands, self.out_grad, self.sums_grad, delta)
        query, key, value, table, query_lookup, key_lookup, left, right = self.needs
        if query or query_lookup or left:
            self._by_query(delta)
        if key or value or key_lookup or right:
            self._by_key(delta)
        if table:
            self._by_pair(delta)
        return self.grads

    def _upstream(self, launch: Launcher, delta: Tensor | None) -> Upstream:
        lookup = launch.lookup(self.sums_grad, self.operands.value_buckets)
        return Upstream(read_only(self.out_grad), self.lse, delta, lookup)

    def _deltas(self) -> Tensor:
        delta, launch = empty(self.lse, *self.lse.shape), self.launch
        if self.operands.is_wide:
            up = self._upstream(launch, None)
            launch("query", exact_deltas, launch.query_tiles, launch.call, up, delta)
            return delta
        launch(
            "deltas",
            row_deltas,
            launch.query_tiles,
            *(read_only(self.out), read_only(self.out_grad), delta),
            *(launch.call.heads, launch.call.queries),
        )
        return delta if self.sums_grad is None else delta + (self.sums * self.sums_grad).sum(-2)

    def _by_query(self, delta: Tensor) -> None:
        launch, lookup, left = self.launch, self._sums(4), self._of_all_heads(6)
        launch(
            "query",
            query_gradients,
            launch.query_tiles,
            *(launch.call, self._upstream(launch, delta), rows(self.grads[0])),
            *(lookup and lookup.rows, None if left is None else rows(left), self.units),
            sums=[] if lookup is None else [lookup.buffer],
        )
        if left is not None and self.readable.is_folded:
            left = unfold_left(left, self.grads[6].shape[-1])
        self._finish(4, lookup, 6, left)

    def _by_key(self, delta: Tensor) -> None:
        launch = self.readable.launcher(by_key=True)
        lookup, right = self._sums(5), self._of_all_heads(7)
        launch(
            "key",
            key_gradients,
            launch.key_tiles,
            *(launch.call, self._upstream(launch, delta), rows(self.grads[1]), rows(self.grads[2])),
            *(lookup and lookup.rows, None if right is None else rows(right), self.units),
            sums=[] if lookup is None else [lookup.buffer],
        )
        if right is not None and self.readable.is_folded:
            right = unfold_right(right, self.grads[7].shape[-1], self.operands.scale)
        self._finish(5, lookup, 7, right)

    def _by_pair(self, delta: Tensor) -> None:
        """Each program adds some images, as many as leave enough programs."""
        batch, launch = self.operands.query.shape[0], self.launch
        offsets, slots = self.grads[3], launch.slot_offsets()
        table = _Sums((*offsets.shape[:2], 1, len(slots)), offsets, self.units)
        tiles = launch.pair_tiles(blocks.MIDDLE)
        wanted = min(-(-batch // TABLE_IMAGES), -(-TABLE_PROGRAMS // tiles))
        groups = batch if len(offsets) > 1 else wanted
        images = -(-batch // groups)
        launch(
            "table",
            table_gradient,
            lambda size: launch.pair_tiles(size) * -(-batch // images),
            *(launch.call, self._upstream(launch, delta), table.rows, self.units, batch, images),
            sums=[table.buffer],
        )
        self.grads[3] = table.folded(offsets.shape[-1], slots)

    def _sums(self, at: int) -> _Sums | None:
        grad = self.grads[at]
        return _Sums(grad.shape, grad, self.units) if self.needs[at] else None

    def _of_all_heads(self, at: int) -> Tensor | None:
        """Each image and head writes its own, before they are added."""
        if not self.needs[at]:
            return None
        factor = self.operands.differentiable[at]
        assert factor is not None
        shape = (*self.operands.query.shape[:2], *factor.shape[2:])
        return empty(factor, *shape, dtype=torch.float32)

    def _finish(self, at: int, lookup: _Sums | None, factor_at: int, factor: Tensor | None) -> None:
        if lookup is not None:
            self.grads[at] = lookup.result()
        if factor is not None:
            self.grads[factor_at] = factor.sum_to_size(self.grads[factor_at].shape)


class _Sums:
    """A float32 tensor that programs add to; with a number of units, as integers."""

    def __init__(self, shape: Sequence[int], like: Tensor, units: Tensor | float | None) -> None:
        self.unit: Tensor | None = None
        dtype = torch.float32
        if units is not None and blocks.sums_are_fixed():
            dtype = torch.int64
            self.unit = _as_tensor(units, like)
        self.buffer = torch.zeros(shape, dtype=dtype, device=like.device)
        self.rows = rows(self.buffer)

    def result(self) -> Tensor:
        return self._as_float(self.buffer)

    def folded(self, num_offsets: int, slots: Tensor) -> Tensor:
        """Of one row of slots: the sum over those that copy each offset."""
        buffer = self.buffer[:, :, 0]
        offsets = buffer.new_zeros(*buffer.shape[:2], num_offsets)
        return self._as_float(offsets.index_add_(-1, slots, buffer))

    def _as_float(self, sums: Tensor) -> Tensor:
        return sums if self.unit is None else (sums.double() / self.unit).float()


def _as_tensor(units: Tensor | float, like: Tensor) -> Tensor:
    """A number without a copy from the CPU, which CUDA graphs could not capture."""
    if isinstance(units, Tensor):
        return units.float().view(1)
    return like.new_full((1,), units, dtype=torch.float32)


def _units(
    operands: Operands, out_grad: Tensor, sums_grad: Tensor | None, delta: Tensor
) -> Tensor | None:
    """How many units are 1 in gradients of biases; None if the order of sums does not matter.

    A row of gradients `a_ij (da_ij - delta_i)` sums to at most twice the largest `da`. What is
    not finite stays so.
    """
    if not blocks.sums_are_fixed():
        return None
    # The unit must be known before the first sum: too large, and small gradients round to
    # nothing; too small, and the integers overflow. So it follows from a bound on the largest sum.
    largest = _largest_norm(out_grad) * _largest_norm(operands.value)
    if sums_grad is not None and operands.value_buckets is not None:
        largest = largest + sums_grad.abs().amax() * len(operands.value_buckets)
    largest = largest / (1 - operands.dropout_p) + delta.abs().amax()
    count = 2 * operands.query.shape[:3].numel()
    # A power of two, so that scaling itself rounds nothing.
    units = torch.exp2((62 - (largest * count).log2()).floor().clamp(-100, 100))
    return torch.where(largest.isfinite(), units, float("nan"))


def _largest_norm(tensor: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tensor, dim=-1, dtype=torch.float32).amax()


def _readable(operands: Operands) -> Readable:
    # Scores are compared before they are scaled, so that the scale must be positive.
    if operands.scale < 0:
        operands = operands._replace(query=-operands.query)
    operands = operands._replace(scale=abs(operands.scale) or SMALLEST_SCALE)
    left, right = operands.left, operands.right
    is_folded = operands.query.itemsize <= 2 and not operands.is_wide
    if is_folded and left is not None and right is not None:
        left, right = fold(left, right, operands.scale)
        operands = operands._replace(left=left, right=right)
    return Readable(_interpretable(operands), is_folded and left is not None)


def _interpretable(operands: Operands) -> Operands:
    """The interpreter would multiply matrices of bfloat16 wrongly."""
    if not is_interpreted():
        return operands
    floats: dict[str, Any] = {
        name: value.float()
        for name, value in operands._asdict().items()
        if isinstance(value, Tensor) and value.dtype == torch.bfloat16
    }
    return operands._replace(**floats)


def _is_empty(operands: Operands) -> bool:
    return 0 in (*operands.query.shape[:3], operands.key.shape[2], operands.value.shape[3])
