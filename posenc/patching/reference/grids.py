"""The grid that a checkpoint was made for, and its tables on that of the model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from posenc.encodings.base import Encoding
from posenc.functional.resample import resample_grid
from posenc.layout import TokenLayout
from posenc.patching.reference.reading import Entry
from posenc.patching.reference.source import Grid, Source

Sized = tuple[Tensor, str]  # a value, and a remark where it was resized


def num_patches(grid: Grid) -> int:
    """Rows of an absolute table."""
    return grid[0] * grid[1]


def num_offsets(grid: Grid) -> int:
    """Entries of a relative table."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1)


def checked_grid(grid: Any) -> Grid | None:
    """Raises unless it is a pair of sides, or None."""
    if grid is None:
        return None
    is_pair = isinstance(grid, (tuple, list)) and [type(side) for side in grid] == [int, int]
    if not is_pair or min(grid) < 1:
        raise ValueError(
            "grid must be (height, width) in patches, that of the images (or windows) which the "
            f"checkpoint was made for, got {grid!r}"
        )
    return grid[0], grid[1]


def sized_table(
    source: Source, entry: Entry, like: Tensor, encoding: Encoding, given: Grid | None
) -> Sized:
    """A parameter of an encoding in our layout, on the grid that the encoding was built for."""
    value, new = entry.row.change(entry.value, like), encoding.layout.grid
    if not entry.row.by_offset or value.shape[:-1] != like.shape[:-1]:
        return value, ""
    extra = like.shape[-1] - num_offsets(new)
    count = value.shape[-1] - extra
    old = _grid_of(count, num_offsets, new, given, entry.key, whole=source.layers)
    if old == new:
        return value, ""
    if entry.row.resize is None:
        raise ValueError(
            f"{entry.key} is of a grid of {_text(old)} patches, the model's is {_text(new)}: "
            f"{source.advice}"
        )
    return entry.row.resize(value, old, new), f"{_text(old)} to {_text(new)}"


def sized_absolute(value: Tensor, like: Tensor, layout: TokenLayout, given: Grid | None) -> Sized:
    """An absolute table `[1, prefix + patches, C]` on the grid of the model.

    Bicubic without antialias, as the fine-tuning scripts of DeiT, on which these sources build.
    """
    prefix, new = like.shape[1] - layout.num_grid, layout.grid
    count = value.shape[1] - prefix
    other_prefix = value.shape[1] in {layout.num_grid, layout.num_tokens} - {like.shape[1]}
    if prefix < 0 or (other_prefix and (given is None or num_patches(given) != count)):
        return value, ""
    old = _grid_of(count, num_patches, new, given, "pos_embed", whole=True)
    if old == new:
        return value, ""
    first, rows = value[0].split([prefix, count])
    rows = resample_grid(rows, old, new, antialias=False)
    return torch.cat([first, rows])[None], f"{_text(old)} to {_text(new)}"


def _grid_of(
    count: int, of: Callable[[Grid], int], new: Grid, given: Grid | None, key: str, whole: bool
) -> Grid:
    """The grid of a table with so many entries: the given one, or else that of the model.

    Where tables are those of windows, some may have the model's size and some the given one.
    """
    if given is not None and (whole or of(given) == count):
        _check_entries(count, of, given, key)
        return given
    _check_entries(count, of, new, key)
    if given is None and _is_doubtful(count, of, new):
        raise ValueError(
            f"{key} has {count} entries for patches, as the model's grid of {_text(new)}, but a "
            f"square has as many: say which it is, grid={new} or grid={(_side(count, of),) * 2}"
        )
    return new


def _check_entries(count: int, of: Callable[[Grid], int], grid: Grid, key: str) -> None:
    if of(grid) != count:
        side = _side(count, of)
        example = "" if side is None else f", such as grid={(side, side)}"
        raise ValueError(
            f"{key} has {count} entries for patches, a grid of {_text(grid)} has {of(grid)}: pass "
            f"grid=(height, width), that which the checkpoint was made for{example}"
        )


def _is_doubtful(count: int, of: Callable[[Grid], int], new: Grid) -> bool:
    """Whether the entries of a rectangle are as many as those of a square, by accident."""
    return new[0] != new[1] and _side(count, of) is not None


def _side(count: int, of: Callable[[Grid], int]) -> int | None:
    limit = math.isqrt(max(count, 0)) + 1
    return next((side for side in range(1, limit + 1) if of((side, side)) == count), None)


def _text(grid: Grid) -> str:
    return f"{grid[0]}x{grid[1]}"
