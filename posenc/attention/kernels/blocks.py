"""Sizes of tiles. Not tuned on any device; chosen so that the kernels compile without spilling.

`benchmarks/inspect_kernels.py` prints registers, spills and shared memory of each.
"""

from __future__ import annotations

from typing import NamedTuple


class Blocks(NamedTuple):
    """Of one kernel."""

    rows: int  # queries of a tile
    columns: int  # keys of a tile
    warps: int
    stages: int  # tiles that are loaded ahead


def choose(kernel: str, width: int, itemsize: int) -> Blocks:
    """For the widest of head_dim and Dv, a power of two, and the size of an entry."""
    if itemsize > 2 or width > 128:
        return Blocks(32, 32, 4, 1)
    return Blocks(64, 64, 4, 2)
