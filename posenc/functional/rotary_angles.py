"""Angles of two-dimensional rotary embeddings: places of the patches times bands of frequencies.

A place is where a patch is on one axis, in the unit of a convention: `start + step * index`. A
pair of channels turns by `place * band`, with the place of the axis that it belongs to. Prefix
tokens do not turn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from posenc.layout import TokenLayout
from posenc.memo import memoized


class Axis(NamedTuple):
    """Places on one axis: `start + step * index`."""

    start: float
    step: float


# Places


def counted(side: int, whole: int, offset: float = 0.0) -> Axis:
    """Patches are counted as if the axis had `whole` of them: `(index + offset) whole / side`."""
    step = whole / side
    return Axis(offset * step, step)


def spanned(side: int) -> Axis:
    """The first patch of an axis of `side` patches is at -1 and the last at 1; one alone at -1."""
    return Axis(-1.0, 2 / max(side - 1, 1))


def centered(extent: int) -> Axis:
    """Centers of patches, -1 and 1 are the borders of an axis of `extent` patches."""
    return Axis(1 / extent - 1, 2 / extent)


def axis_places(layout: TokenLayout, axes: Sequence[Axis]) -> Tensor:
    """Place of every patch on both axes, row first: `[height * width, 2]`, float64 on the CPU."""
    indices = (torch.arange(side, device="cpu", dtype=torch.float64) for side in layout.grid)
    places = [a.start + a.step * index for a, index in zip(axes, indices, strict=True)]
    return torch.cartesian_prod(*places)


# Bands


def power_bands(count: int, temperature: float) -> tuple[float, ...]:
    """`temperature ** (-i / count)` for i < count: from 1 radian per unit downwards."""
    return tuple(temperature ** (-i / count) for i in range(count))


def pixel_bands(count: int, max_freq: float, linear: bool) -> tuple[float, ...]:
    """From pi to `pi max_freq / 2` radians per unit, in equal steps or in equal factors."""
    if linear:
        return tuple(math.pi * each for each in _steps(1.0, max_freq / 2, count))
    return tuple(math.pi * 2**each for each in _steps(0.0, math.log2(max_freq) - 1, count))


def period_bands(count: int, shortest: float, longest: float) -> tuple[float, ...]:
    """`2 pi / period`, periods from the shortest to the longest in equal factors."""
    factor = longest / shortest
    return tuple(math.tau / (shortest * factor**each) for each in _steps(0.0, 1.0, count))


def _steps(first: float, last: float, count: int) -> list[float]:
    """Equal steps from first to last; one alone is the first."""
    return [first + (last - first) * i / max(count - 1, 1) for i in range(count)]


# Turns


def turns(places: Tensor, bands: Tensor, prefix: int, columns_first: bool) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every token's angles, each `[1, 1, prefix + n, 2 count]`.

    Args:
        places: row and column of every patch, `[n, 2]`.
        bands: frequencies of each axis, `[count]`.
        prefix: tokens that do not turn, cosine 1 and sine 0.
        columns_first: the first `count` pairs turn by the column; otherwise by the row.
    """
    places = places.flip(-1) if columns_first else places
    angles = (places[..., None] * bands).flatten(1)
    still = angles.new_zeros(prefix, angles.shape[1])
    angles = torch.cat([still, angles])[None, None]
    return angles.cos(), angles.sin()


@memoized
def axial_turns(
    layout: TokenLayout,
    axes: tuple[Axis, Axis],
    bands: tuple[float, ...],
    columns_first: bool,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Cosine and sine as of `turns`, computed in float64 and rounded once."""
    exact = torch.tensor(bands, device="cpu", dtype=torch.float64)
    cos, sin = turns(axis_places(layout, axes), exact, layout.prefix, columns_first)
    return cos.to(device=device, dtype=dtype), sin.to(device=device, dtype=dtype)


@memoized
def token_places(
    layout: TokenLayout, axes: tuple[Axis, Axis], device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Row and column of every token, 0 for prefix tokens: `[num_tokens, 2]`."""
    places = axis_places(layout, axes)
    still = places.new_zeros(layout.prefix, 2)
    return torch.cat([still, places]).to(device=device, dtype=dtype)


@memoized
def band_values(bands: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """The bands as a tensor `[count]`."""
    return torch.tensor(bands, device="cpu", dtype=torch.float64).to(device=device, dtype=dtype)
