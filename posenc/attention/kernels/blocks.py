"""Sizes of tiles: by a small table, or measured where that is asked for.

The table was made without a GPU: from what the compiler reports for NVIDIA's sm_80 and sm_90
(registers, spills, shared memory; `benchmarks/inspect_kernels.py`), the largest tiles that hardly
spill. It is not tuned for speed. With `POSENC_AUTOTUNE=1` in the environment, the first call of
each kind tries all sizes and keeps the fastest: some seconds for each kernel.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Blocks(NamedTuple):
    """Of one kernel."""

    queries: int  # of a tile
    keys: int  # of a tile
    warps: int
    stages: int  # tiles that are loaded ahead


class Load(NamedTuple):
    """What a tile has to hold, and where."""

    architecture: int  # the first number of the compute capability
    width: int  # the widest of head_dim and Dv, a power of two
    itemsize: int
    reads: int  # for each pair: tables of buckets, and masks
    has_factors: bool


HIGH, WIDE, MIDDLE = Blocks(128, 64, 8, 2), Blocks(64, 128, 8, 2), Blocks(64, 64, 8, 2)
THIN, SMALL, LEAST = Blocks(32, 64, 4, 2), Blocks(32, 32, 4, 2), Blocks(16, 16, 4, 1)
TINY = Blocks(32, 32, 4, 1)
ALL = (HIGH, WIDE, MIDDLE, THIN, SMALL, TINY, LEAST)

# In 16 bits, by architecture, for heads up to 64 wide: with at most one read, and with more.
TABLE = {
    8: {"forward": (HIGH, MIDDLE), "query": (MIDDLE, THIN), "key": (WIDE, SMALL)},
    9: {"forward": (HIGH, MIDDLE), "query": (HIGH, MIDDLE), "key": (WIDE, MIDDLE)},
}
# The gradients of low-rank factors are products in float32, which need many registers.
WITH_FACTORS = {8: {"query": SMALL, "key": TINY}, 9: {"key": THIN}}

_found: dict[Hashable, Blocks] = {}


def candidates(kernel: str, load: Load) -> tuple[Blocks, ...]:
    """The one to use, and smaller ones for devices that have no room for it."""
    first = _preferred(kernel, load)
    return first, *(size for size in ALL if _area(size) < _area(first))


def run_best(
    key: Hashable,
    options: Sequence[Blocks],
    run: Callable[[Blocks], None],
    sums: Sequence[Tensor],
) -> None:
    """Runs with the first option that fits, or the fastest of all; later calls know which.

    What a run adds to `sums` does not remain when several are tried. Times are no reason where
    results must not differ between runs.
    """
    if key in _found:
        # Two calls of a kind may still differ in what they need, such as the alignment of pointers.
        kept = _found[key]
        smaller = (size for size in options if _area(size) < _area(kept))
        _found[key] = _first_that_fits((kept, *smaller), run)
    elif os.environ.get("POSENC_AUTOTUNE") == "1" and not sums_are_fixed():
        _found[key] = _fastest(run, sums)
        run(_found[key])
    else:
        _found[key] = _first_that_fits(options, run)


def sums_are_fixed() -> bool:
    """Whether PyTorch is asked for the same results in every run."""
    return torch.are_deterministic_algorithms_enabled()


def _preferred(kernel: str, load: Load) -> Blocks:
    if load.itemsize > 2 and load.width > 64:
        return LEAST  # whatever is larger spills kilobytes
    if load.itemsize > 2 or load.width > 128:
        return SMALL
    architecture = min(load.architecture, max(TABLE))
    if load.has_factors and kernel in WITH_FACTORS[architecture]:
        return WITH_FACTORS[architecture][kernel]
    if load.width <= 64 and kernel in TABLE[architecture]:
        return TABLE[architecture][kernel][load.reads > 1]
    return SMALL if load.reads > 1 else MIDDLE


def _area(size: Blocks) -> int:
    return size.queries * size.keys * size.stages


def _first_that_fits(options: Sequence[Blocks], run: Callable[[Blocks], None]) -> Blocks:
    from triton.runtime.errors import OutOfResources

    for size in options[:-1]:
        try:
            run(size)  # the error comes before anything is launched
        except OutOfResources:
            continue
        return size
    run(options[-1])
    return options[-1]


def _fastest(run: Callable[[Blocks], None], sums: Sequence[Tensor]) -> Blocks:
    from triton.runtime.errors import OutOfResources
    from triton.testing import do_bench

    times = {}
    for size in ALL:
        try:
            times[size] = do_bench(lambda size=size: run(size), warmup=10, rep=50)
        except OutOfResources:
            continue
    for tensor in sums:
        tensor.zero_()
    if not times:
        raise RuntimeError(f"no size of tiles fits on {torch.cuda.get_device_name()}")
    return min(times, key=lambda size: times[size])
