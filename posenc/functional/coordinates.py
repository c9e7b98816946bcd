"""Where the patches are."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from posenc.layout import TokenLayout
from posenc.memo import memoized


@memoized
def patch_coordinates(layout: TokenLayout, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(row, column) of every patch in patches, relative to the grid's center: `[h * w, 2]`.

    Centered, because factors of a bias lose least precision near zero.
    """
    height, width = layout.grid
    rows = torch.arange(height, device="cpu", dtype=torch.float64) - (height - 1) / 2
    columns = torch.arange(width, device="cpu", dtype=torch.float64) - (width - 1) / 2
    grid = torch.cartesian_prod(rows, columns)
    return grid.to(device=device, dtype=dtype)


@memoized
def unit_coordinates(layout: TokenLayout, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(y, x) of every patch center, in (0, 1) of the image: `[h * w, 2]`."""
    height, width = layout.grid
    rows = (torch.arange(height, device="cpu", dtype=torch.float64) + 0.5) / height
    columns = (torch.arange(width, device="cpu", dtype=torch.float64) + 0.5) / width
    grid = torch.cartesian_prod(rows, columns)
    return grid.to(device=device, dtype=dtype)


@memoized
def patch_offsets(layout: TokenLayout, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Offset (row, column) of key minus query, in patches, of each entry of `PairIndex.buckets`.

    Shape `[(2 height - 1)(2 width - 1), 2]`.
    """
    rows = torch.arange(layout.height - 1, -layout.height, -1, device=device, dtype=dtype)
    columns = torch.arange(layout.width - 1, -layout.width, -1, device=device, dtype=dtype)
    return torch.cartesian_prod(rows, columns)


@memoized
def log_offsets(
    layout: TokenLayout, sides: tuple[int, int], device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Log-spaced offset (row, column) of query minus key of each entry of `PairIndex.buckets`.

    `sign(d) log2(1 + |8 d / (side - 1)|) / log2 8` with `d` in patches: 0 to +-log2(9) / 3 on a
    grid of these sides, more on a larger one. A side of 1 divides by 1.

    Shape `[(2 height - 1)(2 width - 1), 2]`.

    Reference: Liu et al. 2022, arXiv 2111.09883, equation 4; the normalization is that of the
    published code.
    """
    offsets = -patch_offsets(layout, torch.device("cpu"), torch.float64)
    unit = torch.tensor([max(side - 1, 1) for side in sides], device="cpu", dtype=torch.float64)
    logarithms = torch.log1p((8 * offsets / unit).abs()) / math.log(8)
    return (offsets.sign() * logarithms).to(device=device, dtype=dtype)
