"""Where the patches are."""

from __future__ import annotations

import torch
from torch import Tensor

from posenc.layout import TokenLayout
from posenc.memo import memoised


@memoised
def patch_coordinates(layout: TokenLayout, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(row, column) of every patch in patches, relative to the grid's center: `[h * w, 2]`.

    Centered, because factors of a bias lose least precision near zero.
    """
    height, width = layout.grid
    rows = torch.arange(height, device="cpu", dtype=torch.float64) - (height - 1) / 2
    columns = torch.arange(width, device="cpu", dtype=torch.float64) - (width - 1) / 2
    grid = torch.cartesian_prod(rows, columns)
    return grid.to(device=device, dtype=dtype)


@memoised
def unit_coordinates(layout: TokenLayout, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(y, x) of every patch center, in (0, 1) of the image: `[h * w, 2]`."""
    height, width = layout.grid
    rows = (torch.arange(height, device="cpu", dtype=torch.float64) + 0.5) / height
    columns = (torch.arange(width, device="cpu", dtype=torch.float64) + 0.5) / width
    grid = torch.cartesian_prod(rows, columns)
    return grid.to(device=device, dtype=dtype)


@memoised
def patch_offsets(layout: TokenLayout, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Offset (row, column) of key minus query, in patches, of each entry of `PairIndex.buckets`.

    Shape `[(2 height - 1)(2 width - 1), 2]`.
    """
    rows = torch.arange(layout.height - 1, -layout.height, -1, device=device, dtype=dtype)
    columns = torch.arange(layout.width - 1, -layout.width, -1, device=device, dtype=dtype)
    return torch.cartesian_prod(rows, columns)
