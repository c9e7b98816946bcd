"""Low-rank factors in 16 bits: each number as the sum of two, and three products for one.

Tensor cores multiply 16-bit numbers much faster than those of float32. With `x = high + low`, both
in bfloat16 (whose range is that of float32), `x y` is `high high + high low + low high`, exact to
`2**-16` of it: finer than the scores of 16-bit queries by far. Side by side these are one product
of three times the columns, which is added to that of queries and keys before the scale.
"""

from __future__ import annotations

import torch
from torch import Tensor


def fold(left: Tensor, right: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Both of three times the columns; their product is that of the factors divided by scale."""
    (left_high, left_low), (right_high, right_low) = _halves(left / scale), _halves(right)
    return (
        torch.cat([left_high, left_high, left_low], -1),
        torch.cat([right_high, right_low, right_high], -1),
    )


def unfold_left(grad: Tensor) -> Tensor:
    """The gradient of the left factor, from sums over all columns of the right one."""
    high, low, _ = grad.chunk(3, -1)
    return high + low


def unfold_right(grad: Tensor, scale: float) -> Tensor:
    """The gradient of the right factor, from sums over all columns of the left one."""
    high, _, low = grad.chunk(3, -1)
    return (high + low) * scale


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    high = x.to(torch.bfloat16)
    return high, (x - high).to(torch.bfloat16)
