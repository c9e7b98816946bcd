"""Low-rank factors in 16 bits: each number as the sum of two, and three products for one.

Tensor cores multiply 16-bit numbers much faster than those of float32. With `x = high + low`, both
in bfloat16 (whose range is that of float32), `x y` is `high high + high low + low high`, exact to
`2**-16` of it: finer than the scores of 16-bit queries by far. Side by side these are one product
of three times the columns, which is added to that of queries and keys before the scale.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

COLUMNS = 16  # the least of a matrix product


def fold(left: Tensor, right: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Both of three times the columns; their product is that of the factors divided by scale."""
    (left_high, left_low), (right_high, right_low) = _halves(left / scale), _halves(right)
    return (
        _padded(torch.cat([left_high, left_high, left_low], -1)),
        _padded(torch.cat([right_high, right_low, right_high], -1)),
    )


def unfold_left(grad: Tensor, rank: int) -> Tensor:
    """The gradient of the left factor, from sums over all columns of the right one."""
    high, low, _, _ = _parts(grad, rank)
    return high + low


def unfold_right(grad: Tensor, rank: int, scale: float) -> Tensor:
    """The gradient of the right factor, from sums over all columns of the left one."""
    high, _, low, _ = _parts(grad, rank)
    return (high + low) * scale


def _parts(grad: Tensor, rank: int) -> tuple[Tensor, ...]:
    return grad.split([rank, rank, rank, grad.shape[-1] - 3 * rank], -1)


def _padded(factor: Tensor) -> Tensor:
    """With zeros, up to a multiple of what is read at once."""
    return F.pad(factor, (0, -factor.shape[-1] % COLUMNS))


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    high = x.to(torch.bfloat16)
    return high, (x - high).to(torch.bfloat16)
