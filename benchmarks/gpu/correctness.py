"""Which checks prove the kernels on a device: every kernel, term and encoding, and races."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial

from gpu.checks import (
    ROOT,
    Grid,
    autotuned,
    compiled,
    dropout,
    encoding,
    masked,
    plain,
    repeated,
    sanitized,
    start,
    suite,
    terms,
)
from gpu.part import Part, Row, write_json
from gpu.workers import Outcome, Task, Workers
from posenc.bench.cases import all_cases

# What these find may lie outside the kernels, and they are the last: a cut here proves no less.
NOT_OF_KERNELS = "backends"
EXTRA = ("autotuned", "sanitizer", "suite")
# As a mask in 16 bits a bias loses digits in proportion to its size; wide factors do in float32.
ROUGH = {"float32": 1e-3, "bfloat16": 0.25, "float16": 0.25}


@dataclass(frozen=True)
class Sizes:
    """What is checked: in full on a device, and small in the interpreter."""

    kinds: tuple[str, ...]
    combined: tuple[str, ...]  # kinds that have most of the others in them
    dtypes: tuple[str, ...]
    layouts: tuple[Grid, ...]
    in_full: bool  # each kind of term in each dtype and layout, or fewer
    widths: tuple[tuple[int, int], ...]  # head_dim, Dv; the first for all other checks
    masks: tuple[str, ...]
    masked: tuple[str | None, ...]  # kinds of terms beside a mask
    pairs: tuple[tuple[int, int], ...]  # queries, keys, without terms
    encoded: tuple[int, int, int]  # images, heads, head_dim of encodings
    backends: tuple[str, ...]
    repeated: Grid
    runs: int
    dropped: Grid
    compiler: str
    suite: tuple[str, ...]
    sanitizers: tuple[str, ...]


KINDS = ("static", "query", "low_rank", "value", "key", "dense", "all", "value and all")
REAL = Sizes(
    kinds=KINDS,
    combined=("static", "query", "value and all"),
    dtypes=("bfloat16", "float32", "float16"),
    layouts=((14, 14, 1), (16, 8, 0), (9, 31, 2), (25, 23, 5)),
    in_full=True,
    widths=((64, 64), (16, 20), (48, 80), (128, 128), (256, 40)),
    masks=("BHNN", "B11N", "1HNN", "N1", "NN"),
    masked=("static", "value and all", None),
    pairs=((197, 197), (40, 150), (150, 40)),
    encoded=(2, 2, 64),
    backends=("lowrank", "sdpa"),
    repeated=(24, 24, 1),
    runs=20,
    dropped=(15, 16, 1),
    compiler="inductor",
    suite=tuple(sorted(path.name for path in (ROOT / "tests/attention/triton").glob("test_*.py"))),
    sanitizers=("memcheck", "racecheck"),
)
DRY = Sizes(
    kinds=KINDS,
    combined=("value and all",),
    dtypes=("float32", "float16"),
    layouts=((2, 3, 1), (3, 2, 0), (1, 5, 2), (2, 2, 5)),
    in_full=False,
    widths=((16, 16), (16, 20)),
    masks=("B1NN", "N1"),
    masked=("static",),
    pairs=((5, 9),),
    encoded=(1, 2, 16),
    backends=("sdpa",),
    repeated=(2, 3, 1),
    runs=2,
    dropped=(2, 3, 1),
    compiler="aot_eager",
    suite=("test_choice.py::test_a_dense_bias_is_a_mask_already",),
    sanitizers=("memcheck",),
)
OPTIONS = (  # of encodings whose default is not all that reaches the kernels
    "irpe on=qk",
    "irpe on=qkv",
    "irpe mode=bias on=qk",
    "irpe method=cross on=qkv",
    "swin prefix_pairs=separate",
)


def run(part: Part) -> None:
    """All checks, as many at a time as there are processors; the record of success at the end."""
    sizes = DRY if part.dry else REAL
    tasks = checks(sizes)
    count = 1 if part.dry else min(14, max(1, (os.cpu_count() or 1) - 2))
    ended = set()
    with Workers(count, start) as workers:
        for outcome in workers.run(tasks, part.until):
            ended.add(outcome.name)
            part.add(row_of(outcome))
    part.skip(name for name in tasks if name not in ended)
    if not part.dry and (record := proof(part)):
        write_json(part.folder / "proven.json", [record])


def row_of(outcome: Outcome) -> Row:
    """Of the report."""
    return {
        "check": outcome.name,
        "family": outcome.name.partition(":")[0],
        "passed": None if outcome.was_stopped else outcome.failure is None,
        "seconds": round(outcome.seconds, 2),
        **(outcome.value or {}),
        "failure": outcome.failure,
    }


def proof(part: Part) -> Row | None:
    """The record that the kernels are right here; None unless every check says so."""
    rows = [row for row in part.rows if row["family"] != NOT_OF_KERNELS]
    rows = [row for row in rows if row["passed"] is not None]
    cut = [row["check"] for row in part.rows if row["passed"] is None] + part.report["skipped"]
    if not rows or not all(row["passed"] for row in rows):
        return None
    if any(name.partition(":")[0] not in (*EXTRA, NOT_OF_KERNELS) for name in cut):
        return None
    facts = {name: part.report[name] for name in ("architecture", "triton", "torch", "commit")}
    return {**facts, "checks": len(rows)}


def checks(sizes: Sizes) -> dict[str, Task]:
    """Name, which begins with the family, -> check, in order of importance."""
    return {
        **_of_terms(sizes, sizes.dtypes[:1]),
        **_of_encodings(sizes),
        **_of_repetitions(sizes),
        **_of_terms(sizes, sizes.dtypes[1:]),
        **_of_masks(sizes),
        **_of_dropout(sizes),
        **_of_widths(sizes),
        **_of_plain(sizes),
        **_of_compilers(sizes),
        **{f"sanitizer: {tool}": partial(sanitized, tool) for tool in sizes.sanitizers},
        **_of_backends(sizes),
        **_of_autotuning(sizes),
        **{f"suite: {file}": partial(suite, file) for file in sizes.suite},
    }


def _of_terms(sizes: Sizes, dtypes: tuple[str, ...]) -> dict[str, Task]:
    return {
        f"terms: {kind}, {dtype}, {_text(layout)}": partial(
            terms, kind, layout, dtype, sizes.widths[0]
        )
        for dtype in dtypes
        for kind in (sizes.kinds if sizes.in_full or dtype == sizes.dtypes[0] else sizes.combined)
        for layout in (sizes.layouts if sizes.in_full else sizes.layouts[-1:])
    }


def _of_encodings(sizes: Sizes) -> dict[str, Task]:
    """Each dtype on a layout of its own."""
    return {
        f"encodings: {label}, {dtype}, {_text(layout)}": partial(
            encoding, label, "triton", sizes.encoded, layout, dtype
        )
        for dtype, layout in zip(sizes.dtypes[: 1 + sizes.in_full], sizes.layouts, strict=False)
        for label in _labels(sizes)
    }


def _of_backends(sizes: Sizes) -> dict[str, Task]:
    """The others, which are built on kernels of PyTorch."""
    return {
        f"{NOT_OF_KERNELS}: {backend}, {label}, {dtype}": partial(
            encoding, label, backend, sizes.encoded, sizes.layouts[0], dtype, ROUGH[dtype]
        )
        for backend in sizes.backends
        for dtype in sizes.dtypes[:2]
        for label in (_labels(sizes) if sizes.in_full else ["swin"])
    }


def _labels(sizes: Sizes) -> list[str]:
    return [*(case.label for case in all_cases()), *(OPTIONS if sizes.in_full else ())]


def _of_repetitions(sizes: Sizes) -> dict[str, Task]:
    return {
        f"{'deterministic' if fixed else 'races'}: {kind}, {sizes.dtypes[0]}": partial(
            repeated, kind, sizes.repeated, sizes.dtypes[0], sizes.widths[0], sizes.runs, fixed
        )
        for fixed in (False, True)
        for kind in sizes.combined
    }


def _of_masks(sizes: Sizes) -> dict[str, Task]:
    return {
        f"masks: {kind}, {axes}, {'boolean' if boolean else 'float'}": partial(
            masked, kind, axes, boolean, sizes.layouts[0]
        )
        for kind in sizes.masked
        for axes in sizes.masks
        for boolean in (True, False)
    }


def _of_dropout(sizes: Sizes) -> dict[str, Task]:
    return {f"dropout: {kind}": partial(dropout, kind, sizes.dropped) for kind in sizes.combined}


def _of_widths(sizes: Sizes) -> dict[str, Task]:
    return {
        f"widths: {kind}, {dtype}, {widths[0]} and {widths[1]}": partial(
            terms, kind, sizes.layouts[2], dtype, widths
        )
        for widths in sizes.widths[1:]
        for dtype in sizes.dtypes[:2]
        for kind in sizes.combined[-2:]
    }


def _of_plain(sizes: Sizes) -> dict[str, Task]:
    return {
        f"plain: {dtype}, {queries} x {keys}{', causal' if causal else ''}": partial(
            plain, queries, keys, dtype, sizes.widths[0], causal
        )
        for dtype in sizes.dtypes[:2]
        for queries, keys in sizes.pairs
        for causal in (False, True)
    }


def _of_compilers(sizes: Sizes) -> dict[str, Task]:
    return {
        f"compiled: {kind}, {sizes.compiler}": partial(
            compiled, kind, sizes.layouts[0], sizes.compiler
        )
        for kind in sizes.combined[-2:]
    }


def _of_autotuning(sizes: Sizes) -> dict[str, Task]:
    if sizes.compiler != "inductor":
        return {}  # nothing can be timed in the interpreter
    return {
        f"autotuned: {kind}": partial(autotuned, kind, sizes.layouts[2]) for kind in sizes.combined
    }


def _text(layout: Grid) -> str:
    height, width, prefix = layout
    return f"{height}x{width}+{prefix}"
