"""Sine and cosine tables, in the conventions that are in use."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from posenc.layout import TokenLayout
from posenc.memo import memoised

Convention = Literal["mae", "timm", "vaswani"]
CONVENTIONS: tuple[Convention, ...] = get_args(Convention)


def sincos_table(
    layout: TokenLayout,
    dim: int,
    convention: str,
    temperature: float = 10000.0,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Fixed position table `[num_tokens, dim]`; the rows of prefix tokens are zero.

    Token (row r, column c), frequencies `w_i = temperature ** (-i / (dim / 4))`, i < dim / 4:

    - "mae": `[sin(c w), cos(c w), sin(r w), cos(r w)]`: the column comes first, as in the
      published MAE code although that calls it `emb_h`;
    - "timm": `[sin(r w), sin(c w), cos(r w), cos(c w)]`, `build_sincos2d_pos_embed`;
    - "vaswani": 1-D over the row-major index p, interleaved:
      `pe[2i] = sin(p / temperature ** (2i / dim))`, `pe[2i + 1] = cos(same)`.

    Computed in float64 and rounded once. The tensor is remembered and shared: copy it before
    changing it in place.

    Raises:
        ValueError: `dim` is not a multiple of 4 (mae, timm), or an unknown convention.

    Reference: Vaswani et al. 2017, section 3.5; He et al. 2021 (MAE), arXiv 2111.06377.

    >>> sincos_table(TokenLayout(2, 3), 4, "mae")[1]
    tensor([0.8415, 0.5403, 0.0000, 1.0000])
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"sincos: convention must be one of {CONVENTIONS}, got {convention!r}")
    if convention != "vaswani" and dim % 4:
        raise ValueError(
            f"sincos: embed_dim must be a multiple of 4 for {convention!r} (sine and cosine of "
            f"row and column), got {dim}"
        )
    device = torch.device("cpu" if device is None else device)
    return _table(layout, dim, convention, float(temperature), device, dtype)


@memoised
def _table(
    layout: TokenLayout,
    dim: int,
    convention: str,
    temperature: float,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    if convention == "vaswani":
        positions = torch.arange(layout.num_grid, device="cpu", dtype=torch.float64)
        angles = _angles(
            positions, (dim + 1) // 2, 2 / dim if dim % 2 == 0 else 2 / (dim + 1), temperature
        )
        grid = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :dim]
    else:
        rows = torch.arange(layout.height, device="cpu", dtype=torch.float64)
        columns = torch.arange(layout.width, device="cpu", dtype=torch.float64)
        row = _angles(rows.repeat_interleave(layout.width), dim // 4, 4 / dim, temperature)
        column = _angles(columns.repeat(layout.height), dim // 4, 4 / dim, temperature)
        parts = {
            "mae": [column.sin(), column.cos(), row.sin(), row.cos()],
            "timm": [row.sin(), column.sin(), row.cos(), column.cos()],
        }
        grid = torch.cat(parts[convention], dim=-1)
    return torch.cat([grid.new_zeros(layout.prefix, dim), grid]).to(device=device, dtype=dtype)


def _angles(positions: Tensor, count: int, step: float, temperature: float) -> Tensor:
    """`positions * temperature ** (-i step)` for i < count: `[len(positions), count]`."""
    exponents = torch.arange(count, device="cpu", dtype=torch.float64) * step
    return positions[:, None] * temperature**-exponents
