"""Sizes of tiles tried on this device, and the table that would choose the fastest, as a patch.

What this knows of the kernels is here and in `forced`: they ask `blocks.candidates` for sizes, and
read `blocks.TABLE` by architecture, kernel and the most that a pair reads, `blocks.WITH_FACTORS`
by architecture, form of the factors and kernel.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import difflib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import geometric_mean
from typing import Any, NamedTuple

import torch

from gpu.ahead import compile_ahead
from gpu.kernel_times import kernel_milliseconds
from gpu.part import Part, Row
from gpu.ratios import DRY_SHAPES, SHAPES, of_run
from gpu.workers import device_works
from posenc.attention.kernels import blocks
from posenc.attention.kernels.blocks import Blocks
from posenc.bench.cases import Shape, inputs, parse_case
from posenc.bench.contenders import Ours
from posenc.bench.passes import training

ROOT = Path(__file__).parents[2]


class Kind(NamedTuple):
    """Terms that share a row of the tables."""

    label: str
    reads: int  # tables of buckets
    has_factors: bool


KINDS = (
    Kind("swin", 0, False),
    Kind("irpe", 1, False),
    Kind("human_part", 0, True),
    Kind("irpe on=qk", 2, False),
    Kind("irpe on=qkv", 3, False),
)
# Those that are most likely to be fast on a large device come first.
SIZES = tuple(
    Blocks(queries, keys, warps, stages)
    for queries, keys, warps in (
        (128, 64, 8),
        (64, 128, 8),
        (64, 64, 4),
        (128, 64, 4),
        (64, 64, 8),
        (128, 128, 8),
        (64, 32, 4),
        (32, 64, 4),
        (64, 128, 4),
        (32, 32, 4),
    )
    for stages in (2, 1, 3)
)
# Name of a kernel -> what the tables call it.
KERNELS = {"forward": "forward", "query_gradients": "query", "key_gradients": "key"}
DRY_KERNELS = {"posenc::fused_attention": "forward", "posenc::fused_attention_backward": "key"}
DRY_SIZES = (Blocks(16, 16, 4, 1), Blocks(32, 16, 4, 1))


def run(part: Part) -> None:
    """Times of each kernel of each kind with each size, and then the patch."""
    sizes, kernels = (DRY_SIZES, DRY_KERNELS) if part.dry else (SIZES, KERNELS)
    device, shape = of_run(part.dry)[0], _shape(part.dry, 16)
    kinds = KINDS[:3] if part.dry else KINDS
    tries = [(kind, size) for size in (None, *sizes) for kind in kinds]
    tasks = {
        f"{kind.label} {_text(size)}": partial(compile_one, kind.label, size, part.dry)
        for kind, size in tries
    }
    compile_ahead(part, tasks, share=0.5)
    for kind, size in part.each(tries, lambda each: f"{each[0].label} {_text(each[1])}"):
        milliseconds, failure = times(kind.label, size, shape, device)
        part.add(
            {
                "case": kind.label,
                "tile": _text(size),
                "size": size and tuple(size),
                "milliseconds": {kernels[k]: t for k, t in milliseconds.items() if k in kernels},
                "all_milliseconds": milliseconds,
                "failure": failure,
            }
        )
    write_patch(part)


def times(
    label: str, size: Blocks | None, shape: Shape, device: torch.device
) -> tuple[dict[str, float], str | None]:
    """(milliseconds of a training step by kernel, why there are none)."""
    dtype = of_run(device.type == "cpu")[1]
    torch.manual_seed(0)
    tensors = inputs(shape, device, dtype)
    module, _ = Ours(parse_case(label), "triton").build(shape, device, dtype)
    try:
        with forced(size):
            return dict(kernel_milliseconds(training(module, tensors), device)), None
    except Exception as error:  # too large for the device, mostly
        if not device_works():
            raise
        return {}, f"{type(error).__name__}: {error}"[:300]


@contextlib.contextmanager
def forced(size: Blocks | None) -> Iterator[None]:
    """All kernels use this size; None: what the tables say."""
    candidates, found = blocks.candidates, dict(blocks._found)
    blocks._found.clear()
    if size is not None:
        blocks.candidates = lambda *_: (size,)
    try:
        yield
    finally:
        blocks.candidates = candidates
        blocks._found.clear()
        blocks._found.update(found)


def compile_one(label: str, size: Blocks | None, dry: bool) -> None:
    """A training step."""
    times(label, size, _shape(dry, 2), of_run(dry)[0])


def write_patch(part: Part) -> None:
    """For `git apply`, where a size was faster than what the tables say."""
    path = Path(blocks.__file__)
    architecture = 9 if part.dry else torch.cuda.get_device_capability()[0]
    tables = faster_tables(part.rows, architecture)
    part.write(tables={name: repr(table) for name, table in tables.items()})
    if not tables:
        return
    old = path.read_text()
    name = path.relative_to(ROOT).as_posix()
    new = with_tables(old, tables)
    lines = (text.splitlines(keepends=True) for text in (old, new))
    patch = "".join(difflib.unified_diff(*lines, f"a/{name}", f"b/{name}"))
    (part.folder / "tiles.patch").write_text(patch)


def faster_tables(rows: Iterable[Row], architecture: int) -> dict[str, Any]:
    """The tables with the fastest sizes for this architecture; empty where they say so already."""
    rows = [row for row in rows if row["milliseconds"]]
    general, factors = copy.deepcopy(blocks.TABLE), copy.deepcopy(blocks.WITH_FACTORS)
    own = general.setdefault(architecture, copy.deepcopy(general[max(general)]))
    for kernel, sizes in own.items():
        least = 0
        for most in sizes:
            kinds = [k for k in KINDS if least <= k.reads <= most and not k.has_factors]
            sizes[most] = fastest(rows, kernel, kinds) or sizes[most]
            least = most + 1
        with_factors = fastest(rows, kernel, [k for k in KINDS if k.has_factors])
        if with_factors is not None:
            factors.setdefault((architecture, "halves"), {})[kernel] = with_factors
    found = {"TABLE": general, "WITH_FACTORS": factors}
    return {name: table for name, table in found.items() if table != getattr(blocks, name)}


def fastest(rows: list[Row], kernel: str, kinds: list[Kind]) -> Blocks | None:
    """The size with the smallest product of times over these kinds, all of which it fits.

    None where nothing was measured, or where no size gains 3 % over what the tables say.
    """
    measured: dict[Any, list[float]] = {}
    labels = {kind.label for kind in kinds} & {row["case"] for row in rows}
    for row in rows:
        if row["case"] in labels and kernel in row["milliseconds"]:
            size = row["size"] and tuple(row["size"])
            measured.setdefault(size, []).append(row["milliseconds"][kernel])
    means = {
        size: geometric_mean(ms) for size, ms in measured.items() if len(ms) == len(labels) > 0
    }
    today = means.pop(None, None)
    if today is None or not means:
        return None
    best = min(means, key=lambda size: means[size])
    return Blocks(*best) if means[best] < 0.97 * today else None


def with_tables(source: str, tables: dict[str, Any]) -> str:
    """The source, with these tables instead of its own."""
    lines = source.splitlines()
    statements = {
        node.targets[0].id: node
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    for name in sorted(tables, key=lambda name: -statements[name].lineno):
        statement = statements[name]
        lines[statement.lineno - 1 : statement.end_lineno] = _literal(name, tables[name])
    return "\n".join(lines) + "\n"


def _literal(name: str, table: dict[Any, dict[str, Any]]) -> list[str]:
    rows = [f"    {key!r}: {_text_of(row)}," for key, row in sorted(table.items())]
    return [f"{name} = {{", *rows, "}"]


def _text_of(value: Any) -> str:
    """With names for what has one."""
    if isinstance(value, dict):
        entries = (f"{_text_of(key)}: {_text_of(entry)}" for key, entry in value.items())
        return f"{{{', '.join(entries)}}}"
    if isinstance(value, Blocks):
        names = {size: name for name, size in vars(blocks).items() if isinstance(size, Blocks)}
        return names.get(value, f"Blocks({', '.join(map(str, value))})")
    return "ANY" if value == blocks.ANY else f'"{value}"' if isinstance(value, str) else str(value)


def _shape(dry: bool, batch: int) -> Shape:
    return DRY_SHAPES["7"] if dry else replace(SHAPES["1025"], batch=batch)


def _text(size: Blocks | None) -> str:
    if size is None:
        return "default"
    return f"{size.queries}x{size.keys}, {size.warps} warps, {size.stages} stages"
