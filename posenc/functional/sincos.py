"""Sine and cosine tables, in the conventions that are in use."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from posenc.layout import TokenLayout
from posenc.memo import memoized

Convention = Literal["mae", "timm", "vaswani", "moco_v3", "detr", "positional_encodings", "mae_1d"]
CONVENTIONS: tuple[Convention, ...] = get_args(Convention)
# What channels hold, for each of these; the width must be a multiple of the number.
_CHANNEL_GROUPS = {
    "mae": (4, "sine and cosine of row and column"),
    "timm": (4, "sine and cosine of row and column"),
    "moco_v3": (4, "sine and cosine of row and column"),
    "detr": (4, "sine and cosine of row and column"),
    "mae_1d": (2, "sine and cosine of the index"),
}
_FLAGS = {"reverse_coord": "timm", "interleave_sin_cos": "timm", "normalize": "detr"}


def sincos_table(
    layout: TokenLayout,
    dim: int,
    convention: str,
    temperature: float = 10000.0,
    *,
    reverse_coord: bool = False,
    interleave_sin_cos: bool = False,
    normalize: bool = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Fixed position table `[num_tokens, dim]`; the rows of prefix tokens are zero.

    Token (row r, column c), frequencies `w_i = temperature ** (-i / (dim / 4))`, i < dim / 4:

    - "mae": `[sin(c w), cos(c w), sin(r w), cos(r w)]`: the column comes first, as in the
      published MAE code although that calls it `emb_h`;
    - "timm": `[sin(r w), sin(c w), cos(r w), cos(c w)]`, `build_sincos2d_pos_embed`. With
      `reverse_coord` r and c change places; with `interleave_sin_cos` it is
      `[sin(r w), cos(r w), sin(c w), cos(c w)]`, blocks in turn. timm's `reverse_coord` lists the
      tokens column by column as well, ours stay row by row;
    - "moco_v3": `[sin(r w), cos(r w), sin(c w), cos(c w)]`, what the published table gives to
      tokens of a square grid. That table runs down the columns and does not fit the tokens of a
      rectangle, where it is put right here;
    - "detr": `pe[2i] = sin((r + 1) w_i)`, `pe[2i + 1] = cos(same)`, then the same of `c + 1`. With
      `normalize`, `r + 1` is replaced by `2 pi (r + 1) / (height + 1e-6)`, c by the width;
    - "positional_encodings": `pe[2i] = sin(r w_i)`, `pe[2i + 1] = cos(same)`, then the same of c;
      a width that is no multiple of 4 is rounded up to one, and the last channels are dropped.

    Over the row-major index p, `w_i = temperature ** (-i / (dim / 2))`, i < dim / 2:

    - "vaswani": `pe[2i] = sin(p w_i)`, `pe[2i + 1] = cos(same)`; an odd width drops the last;
    - "mae_1d": `[sin(p w), cos(p w)]`, from which MAE's code builds its table.

    Computed in float64 and rounded once. The tensor is remembered and shared: copy it before
    changing it in place.

    Raises:
        ValueError: an unknown convention, a `dim` that is not a multiple of 4 (mae, timm, moco_v3,
            detr) or of 2 (mae_1d), or a flag of another convention.

    Reference: Vaswani et al. 2017, section 3.5; He et al. 2021 (MAE), arXiv 2111.06377; Chen et
    al. 2021 (MoCo v3), arXiv 2104.02057; Carion et al. 2020 (DETR), arXiv 2005.12872.

    >>> sincos_table(TokenLayout(2, 3), 4, "mae")[1]
    tensor([0.8415, 0.5403, 0.0000, 1.0000])
    """
    flags = (reverse_coord, interleave_sin_cos, normalize)
    check_sincos("sincos", dim, convention, *flags)
    device = torch.device("cpu" if device is None else device)
    return _table(layout, dim, convention, float(temperature), flags, device, dtype)


@memoized
def offset_waves(
    side: int, dim: int, temperature: float, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """`[sin(d w), cos(d w)]` of the offsets d from `1 - side` to `side - 1`: `[2 side - 1, dim]`.

    With `w_i = temperature ** (-i / (dim / 2))`, i < dim / 2, computed in float64 and rounded once.

    Reference: Dai et al. 2019, arXiv 1901.02860, section 3.3, after Vaswani et al. 2017.
    """
    offsets = torch.arange(1 - side, side, device="cpu", dtype=torch.float64)
    angles = _angles(offsets, dim // 2, temperature)
    return torch.cat([angles.sin(), angles.cos()], dim=1).to(device=device, dtype=dtype)


def check_sincos(
    owner: str,
    dim: int,
    convention: str,
    reverse_coord: bool,
    interleave_sin_cos: bool,
    normalize: bool,
) -> None:
    """Raises unless there is a table of these options."""
    if convention not in CONVENTIONS:
        raise ValueError(f"{owner}: convention must be one of {CONVENTIONS}, got {convention!r}")
    given = (reverse_coord, interleave_sin_cos, normalize)
    for (flag, only), value in zip(_FLAGS.items(), given, strict=True):
        if value and convention != only:
            raise ValueError(
                f"{owner}: {flag}=True is an option of convention={only!r}, got {convention!r}; "
                "leave it out"
            )
    multiple, held = _CHANNEL_GROUPS.get(convention, (1, ""))
    if dim % multiple:
        raise ValueError(
            f"{owner}: embed_dim must be a multiple of {multiple} for convention={convention!r} "
            f"({held}), got {dim}"
        )


@memoized
def _table(
    layout: TokenLayout,
    dim: int,
    convention: str,
    temperature: float,
    flags: tuple[bool, bool, bool],
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    reverse_coord, interleave_sin_cos, normalize = flags
    axes = _axes(layout, convention, normalize)
    if reverse_coord or convention == "mae":
        axes.reverse()
    count = math.ceil(dim / (2 * len(axes)))
    angles = torch.stack([_angles(axis, count, temperature) for axis in axes], dim=1)
    waves = torch.stack([angles.sin(), angles.cos()])  # [sine or cosine, token, axis, frequency]
    grid = waves.permute(_channel_order(convention, interleave_sin_cos)).flatten(1)[:, :dim]
    return torch.cat([grid.new_zeros(layout.prefix, dim), grid]).to(device=device, dtype=dtype)


def _axes(layout: TokenLayout, convention: str, normalize: bool) -> list[Tensor]:
    """The coordinates of every patch: row and column, or the index alone."""
    if convention in ("vaswani", "mae_1d"):
        return [torch.arange(layout.num_grid, device="cpu", dtype=torch.float64)]
    rows = torch.arange(layout.height, device="cpu", dtype=torch.float64)
    columns = torch.arange(layout.width, device="cpu", dtype=torch.float64)
    if convention == "detr":
        rows, columns = rows + 1, columns + 1
    if normalize:  # the small number is that of the published code
        rows = rows / (layout.height + 1e-6) * 2 * math.pi
        columns = columns / (layout.width + 1e-6) * 2 * math.pi
    return [rows.repeat_interleave(layout.width), columns.repeat(layout.height)]


def _channel_order(convention: str, interleave_sin_cos: bool) -> tuple[int, int, int, int]:
    """How `[wave, token, axis, frequency]` becomes tokens of channels, the last runs fastest."""
    if convention == "timm" and not interleave_sin_cos:
        return 1, 0, 2, 3
    if convention in ("vaswani", "detr", "positional_encodings"):
        return 1, 2, 3, 0
    return 1, 2, 0, 3


def _angles(positions: Tensor, count: int, temperature: float) -> Tensor:
    """`positions * temperature ** (-i / count)` for i < count: `[len(positions), count]`."""
    exponents = torch.arange(count, device="cpu", dtype=torch.float64) / count
    return positions[:, None] * temperature**-exponents
