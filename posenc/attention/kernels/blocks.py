"""Sizes of tiles: by a small table, or measured where that is asked for.

The table was made without a GPU: from what the compiler reports for NVIDIA's sm_80 and sm_90
(`benchmarks/inspect_kernels.py`), the tiles with the least instructions per score that spill
nothing. It is not tuned for speed. With `POSENC_AUTOTUNE=1` in the environment, the first call of
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
    fills_large: bool  # tiles of 128 keys leave few over, and tables are read in runs of 16 bytes
    factors: str  # low-rank ones, "none", as "halves" in 16 bits (factors.py), or in "float32"


EDGE = 16  # of a product: tiles for what the main loop leaves over
LARGE = Blocks(128, 128, 8, 2)
HIGH, WIDE = Blocks(128, 64, 8, 2), Blocks(64, 128, 8, 2)
FLAT, NARROW = Blocks(32, 128, 8, 2), Blocks(128, 32, 8, 2)
# Hopper's products are of 64 rows by four warps together: eight would do some work twice.
MIDDLE, MIDDLE_OF_FOUR = Blocks(64, 64, 8, 2), Blocks(64, 64, 4, 2)
LOW, THIN = Blocks(64, 32, 4, 2), Blocks(32, 64, 4, 2)
LOW_OF_EIGHT = Blocks(64, 32, 8, 2)  # more registers for each pair, where heads are wide
SMALL, LEAST, TINY = Blocks(32, 32, 4, 2), Blocks(16, 16, 4, 1), Blocks(32, 32, 4, 1)
ALL = (
    *(LARGE, HIGH, WIDE, FLAT, NARROW, MIDDLE, MIDDLE_OF_FOUR),
    *(LOW, LOW_OF_EIGHT, THIN, SMALL, TINY, LEAST),
)

# In 16 bits, for heads up to 64 wide: by architecture and kernel, and by what is read for a pair,
# so many numbers at most.
ANY = 10**6
TABLE = {
    8: {
        "forward": {3: MIDDLE, ANY: LOW},
        "query": {1: MIDDLE, ANY: LOW},
        "key": {1: MIDDLE, ANY: SMALL},
        "table": {ANY: LOW},
    },
    9: {
        "forward": {1: LARGE, 3: HIGH, ANY: NARROW},
        "query": {2: HIGH, ANY: NARROW},
        "key": {2: WIDE, ANY: FLAT},
        "table": {1: WIDE, ANY: LOW},
    },
}
# The same for heads up to 128 wide.
TABLE_OF_WIDE: dict[int, dict[str, dict[int, Blocks]]] = {
    8: {"table": {ANY: LOW_OF_EIGHT}},
    9: {
        "forward": {1: HIGH, ANY: SMALL},
        "query": {0: HIGH, 1: NARROW, ANY: SMALL},
        "key": {1: FLAT, ANY: SMALL},
        "table": {ANY: SMALL},  # whose sums of integers leave little room
    },
}
# Factors need registers for sums of their own, and products in float32 for much more.
WITH_FACTORS = {
    (8, "halves"): {"key": FLAT},
    (8, "float32"): {"forward": MIDDLE, "query": SMALL, "key": TINY, "table": TINY},
    (9, "float32"): {"forward": HIGH, "query": HIGH, "key": THIN, "table": THIN},
}

_found: dict[Hashable, Blocks] = {}


def fills_large(keys: int, prefix: int, width: int) -> bool:
    """Whether a large tile suits a call: what it leaves over fits into two tiles of an edge."""
    left_over = (keys - prefix) % LARGE.keys + prefix
    return left_over <= 2 * EDGE and width % 4 == 0


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
    with_factors = WITH_FACTORS.get((architecture, load.factors), {})
    if kernel in with_factors:
        return with_factors[kernel]
    sizes = (TABLE if load.width <= 64 else TABLE_OF_WIDE)[architecture]
    if kernel in sizes:
        size = next(size for reads, size in sizes[kernel].items() if load.reads <= reads)
        return HIGH if size == LARGE and not load.fills_large else size
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
