"""Tables at other resolutions; differentiable, the stored table is never changed."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from posenc.functional.precision import at_least_float32, without_autocast
from posenc.memo import memoized

OffsetInterpolation = Literal["linear", "cubic"]


def resample_grid(
    table: Tensor,
    old: tuple[int, int],
    new: tuple[int, int],
    *,
    mode: str = "bicubic",
    antialias: bool = True,
) -> Tensor:
    """An absolute table `[h * w, C]` on another grid: `[h2 * w2, C]`.

    `out[y, x] = sum_r sum_c rows[y, r] columns[x, c] table[r, c]`, with the weights of
    `torch.nn.functional.interpolate` along one axis (`align_corners=False`), in at least float32.
    Equal grids return the table itself; 16x8 to 8x16 is resampled although the count is equal.

    Args:
        table: one row per patch, row-major.
        old: rows and columns of the grid of the table.
        new: rows and columns of the grid that is wanted.
        mode: "bilinear", "bicubic", or another mode of two axes that `interpolate` has.
        antialias: whether a smaller grid averages over what it leaves out.
    """
    if old == new:
        return table
    image = table.unflatten(0, old).to(at_least_float32(table.dtype))
    rows = _axis_weights(old[0], new[0], mode, antialias).to(image)
    columns = _axis_weights(old[1], new[1], mode, antialias).to(image)
    with without_autocast(table.device):
        lines = (rows @ image.flatten(1)).unflatten(1, image.shape[1:])  # [h2, w, C]
        return (columns @ lines).flatten(0, 1).to(table.dtype)


def resample_line(table: Tensor, new: int) -> Tensor:
    """A table `[length, C]` of another length, `[new, C]`: linear, `align_corners=False`.

    The weights are those of `torch.nn.functional.interpolate` with `mode="linear"`, and an equal
    length returns the table itself.
    """
    if len(table) == new:
        return table
    return _axis_weights(len(table), new, "bilinear", False).to(table) @ table


@memoized
def _axis_weights(old: int, new: int, mode: str, antialias: bool) -> Tensor:
    """`[new, old]`: how much of each old line a new line takes.

    `interpolate` is asked for its own weights, by an image of unit vectors, rather than for the
    table: with antialias, PyTorch's CPU kernel leaves the height of an image that is, or becomes,
    one wide as it was, unless that image happens to be channels last. Here only the height
    changes, and an image one wide is not asked for.
    """
    if old == 1:
        return torch.ones(new, 1, device="cpu", dtype=torch.float64)
    units = torch.eye(old, device="cpu", dtype=torch.float64)[None, None]
    return F.interpolate(
        units, size=(new, old), mode=mode, antialias=antialias, align_corners=False
    )[0, 0]


def resample_offsets(
    table: Tensor,
    old: tuple[int, int],
    new: tuple[int, int],
    interpolation: OffsetInterpolation = "linear",
) -> Tensor:
    """A relative table `[heads, (2h - 1)(2w - 1)]` on another grid.

    Geometric spacing: the k-th old offset of a side of n patches is placed at
    `1 + q + ... + q^(k-1)`, with q such that the last one falls on the last new offset; so near
    offsets keep their meaning in patches and far ones are stretched. Equal sides (q = 1) are
    exact, a side of 1 is constant, and one of 2 is constant beyond its offset. Entries behind
    those of the grid, of prefix pairs, pass through.

    Args:
        table: offsets row-major.
        old: rows and columns of the grid of the table.
        new: rows and columns of the grid that is wanted.
        interpolation: "linear", or "cubic": a spline through all old offsets of an axis whose
            third derivative is continuous at the second and the last but one ("not a knot").
            A side of 2 is linear in both.
    """
    if old == new:
        return table
    entries = (2 * old[0] - 1) * (2 * old[1] - 1)
    rows = _offset_weights(old[0], new[0], interpolation).to(table)
    columns = _offset_weights(old[1], new[1], interpolation).to(table)
    image = table[:, :entries].unflatten(-1, (2 * old[0] - 1, 2 * old[1] - 1))
    grid = torch.einsum("yr,xc,hrc->hyx", rows, columns, image).flatten(1)
    return torch.cat([grid, table[:, entries:]], dim=1)


def resample_distances(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """A table of absolute offsets `[heads, h * w]` on another grid.

    As `resample_offsets`, linear, of a table that is the same for an offset and its opposite.
    """
    if old == new:
        return table
    rows, columns = (
        _offset_weights(n, m, "linear").to(table)[m - 1 :, n - 1 :]
        for n, m in zip(old, new, strict=True)
    )
    return torch.einsum("yr,xc,hrc->hyx", rows, columns, table.unflatten(-1, old)).flatten(1)


@memoized
def _offset_weights(old: int, new: int, interpolation: OffsetInterpolation) -> Tensor:
    """`[2 new - 1, 2 old - 1]`: interpolation of the new offsets among the old."""
    if old == 1:
        return torch.ones(2 * new - 1, 1, device="cpu", dtype=torch.float64)
    if interpolation == "cubic" and old > 2 and new > 2:  # at 0 and 1 lie old offsets anyway
        half = _geometric_positions(old, new)
        targets = torch.arange(1 - new, new, device="cpu", dtype=torch.float64)
        return _spline_weights(torch.cat([-half[1:].flip(0), half]), targets)
    half = _half_weights(_geometric_positions(old, new), new)  # offsets 0 and above
    weights = half.new_zeros(2 * new - 1, 2 * old - 1)
    weights[new - 1 :, old - 1 :] = half
    weights[: new - 1, :old] = half[1:].flip(0, 1)  # the mirror image
    return weights


def _spline_weights(x: Tensor, targets: Tensor) -> Tensor:
    """`[targets, n]`: the cubic spline through values at the n >= 5 places x, not a knot.

    The spline is given by its second derivatives M at the places, which solve
    `h_(i-1) M_(i-1) + 2 (h_(i-1) + h_i) M_i + h_i M_(i+1) = 6 (slope_i - slope_(i-1))`.
    """
    count, h = len(x), x.diff()
    inner = torch.arange(1, count - 1, device=x.device)
    system, slopes = x.new_zeros(count, count), x.new_zeros(count, count)
    system[inner, inner - 1], system[inner, inner + 1] = h[:-1], h[1:]
    system[inner, inner] = 2 * (h[:-1] + h[1:])
    system[0, :3] = torch.stack([h[1], -h[0] - h[1], h[0]])
    system[-1, -3:] = torch.stack([h[-1], -h[-1] - h[-2], h[-2]])
    slopes[inner, inner - 1], slopes[inner, inner + 1] = 6 / h[:-1], 6 / h[1:]
    slopes[inner, inner] = -6 / h[:-1] - 6 / h[1:]
    curvature = torch.linalg.solve(system, slopes)  # [n, n], of the values
    targets = targets.clamp(x[0], x[-1])
    upper = torch.searchsorted(x, targets).clamp(1, count - 1)
    step = (x[upper] - x[upper - 1])[:, None]
    right = (targets - x[upper - 1])[:, None] / step
    left, values = 1 - right, torch.eye(count).to(x)
    bend = (left**3 - left) * curvature[upper - 1] + (right**3 - right) * curvature[upper]
    return left * values[upper - 1] + right * values[upper] + step**2 / 6 * bend


def _half_weights(positions: Tensor, new: int) -> Tensor:
    """`[new, old]`: the new offsets 0..new-1 among increasing old positions."""
    targets = torch.arange(new, device="cpu", dtype=torch.float64)
    upper = torch.searchsorted(positions, targets).clamp(1, len(positions) - 1)
    start, end = positions[upper - 1], positions[upper]
    share = ((targets - start) / (end - start)).clamp(0, 1)
    weights = positions.new_zeros(new, len(positions))
    weights.scatter_(1, (upper - 1)[:, None], (1 - share)[:, None])
    return weights.scatter_(1, upper[:, None], share[:, None])


def _geometric_positions(old: int, new: int) -> Tensor:
    """Positions of the old offsets 0..old-1, in new patches."""
    steps = torch.arange(old - 1, device="cpu", dtype=torch.float64)
    ratio = 1.0 if old == new else _solve_ratio(old - 1, new - 1)
    return torch.cat([steps.new_zeros(1), (ratio**steps).cumsum(0)])


def _solve_ratio(count: int, extent: int) -> float:
    """Solves `1 + q + ... + q^(count-1) = max(extent, 1)` for q, by bisection."""
    if count == 1:
        return 1.0
    low, high = 0.0, float(max(extent, 2))
    for _ in range(200):
        middle = (low + high) / 2
        total = sum(middle**power for power in range(count))
        low, high = (middle, high) if total < max(extent, 1) else (low, middle)
    return (low + high) / 2
