"""Euclidean distances of patches, in patches, and functions of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from posenc.functional.coordinates import patch_coordinates
from posenc.layout import TokenLayout
from posenc.memo import memoized


@memoized
def patch_distances(layout: TokenLayout, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The distance of every bucket of `distance_index`: `[height * width]`."""
    return squared_distances(layout, device, torch.float64).sqrt().to(dtype)


@memoized
def squared_distances(layout: TokenLayout, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The squared distance of every bucket of `distance_index`: `[height * width]`."""
    rows = torch.arange(layout.height, device="cpu", dtype=torch.float64)
    columns = torch.arange(layout.width, device="cpu", dtype=torch.float64)
    squared = rows[:, None] ** 2 + columns**2
    return squared.flatten().to(device=device, dtype=dtype)


@memoized
def squared_distance_factors(
    layout: TokenLayout, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """`left right^T = |p_i - p_j|^2` up to a constant per query: each `[N, 3]`.

    With prefix tokens, whose pairs are 0 beside the others, it is exact, and `[N, 4]`: the square
    of the query can then not be dropped.
    """
    grid = patch_coordinates(layout, device, dtype)
    square, ones = grid.square().sum(-1, keepdim=True), grid.new_ones(len(grid), 1)
    left, right = torch.cat([ones, -2 * grid], dim=-1), torch.cat([square, grid], dim=-1)
    if not layout.prefix:
        return left, right
    left, right = torch.cat([left, square], dim=-1), torch.cat([right, ones], dim=-1)
    nothing = left.new_zeros(layout.prefix, 4)
    return torch.cat([nothing, left]), torch.cat([nothing, right])


def diagonal(layout: TokenLayout) -> float:
    """The largest distance of two patches."""
    return math.hypot(layout.height - 1, layout.width - 1)


def alibi_slopes(num_heads: int) -> list[float]:
    """ALiBi's slope of each head: `2^(-8 (h + 1) / heads)` for a power of two.

    Other numbers of heads take the slopes of the power of two below, and then every second slope
    of the power above.

    Reference: Press et al. 2022, arXiv 2108.12409, section 3.

    >>> alibi_slopes(4)
    [0.25, 0.0625, 0.015625, 0.00390625]
    >>> alibi_slopes(3)
    [0.0625, 0.00390625, 0.25]
    """
    below = 2 ** (num_heads.bit_length() - 1)
    return [*_slopes(below), *_slopes(2 * below)[::2][: num_heads - below]]


def _slopes(power_of_two: int) -> list[float]:
    return [2 ** (-8 * (head + 1) / power_of_two) for head in range(power_of_two)]
