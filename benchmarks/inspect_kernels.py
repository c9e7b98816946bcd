"""What the compiler makes of the Triton kernels, without a GPU: instructions, registers, spills.

    python benchmarks/inspect_kernels.py --capability 90 --dtype bfloat16 --head-dim 64

Compiles every kernel that one call with gradients needs, for each kind of term, and prints what
ptxas and nvdisasm report: instructions per score in the main loop, what they are, and a lower
bound of the clocks that a score takes (see sass.py), beside that of a plain kernel of the same
tile. A spill is what a thread must write to memory because registers do not hold it. A bound is
not a time: waiting for memory is not in it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sass
import torch

import posenc
from posenc.attention.backends import triton as backend
from posenc.attention.call import AttentionCall
from posenc.attention.kernels import blocks, launch

try:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction
except ModuleNotFoundError as missing:
    raise SystemExit(f'{missing}: pip install ".[triton]"') from None

KINDS = {
    "plain": (None, {}),
    "static": ("swin", {}),
    "contextual": ("irpe", {}),
    "contextual on q and k": ("irpe", {"on": "qk"}),
    "cross on q, k and v": ("irpe", {"method": "cross", "on": "qkv"}),
    "value": ("irpe", {"on": "qkv"}),
    "low rank": ("human_part", {}),
    "causal": (None, {}),
}


# How often a tile of scores is multiplied in one pass of a kernel's main loop: columns of heads,
# of values, of factors, and how many blocks of factors. A second pass of forward sums weights.
PRODUCTS = {
    "forward": (1, 1, 1),
    "second pass": (1, 0, 1),
    "exact_deltas": (1, 1, 1),
    "query_gradients": (2, 1, 3),  # factors also by both halves of a gradient
    "key_gradients": (2, 2, 3),
    "table_gradient": (1, 1, 1),
}
KERNELS = ["row_deltas", *(name for name in PRODUCTS if name != "second pass")]


class _Target:
    """Stands for a device that is not there."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def inspect(kinds: list[str], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each kernel of each kind."""
    capability = options.capability
    driver.set_active(_Target(capability))
    launch.architecture = lambda device: capability // 10
    compiled: list[Any] = []
    original = JITFunction.run

    def compile_only(self: JITFunction, *args: Any, grid: Any, warmup: bool, **given: Any) -> None:
        if self.__name__ not in options.kernels:
            return
        kernel = original(self, *args, grid=grid, warmup=True, **given)
        passes = [self.__name__]
        if self.__name__ == "forward" and args[3] is not None:
            passes.append("second pass")
        compiled.append(_report(passes, kernel, args[-1], given["num_stages"], options))

    JITFunction.run = compile_only
    try:
        for kind in kinds:
            compiled.clear()
            _run(kind, options)
            yield from ({"kind": kind, **row} for row in compiled)
    finally:
        JITFunction.run = original


def _run(kind: str, options: argparse.Namespace) -> None:
    """A call with gradients; its result is not computed."""
    layout, head_dim = posenc.TokenLayout(*options.grid, options.prefix), options.head_dim
    # Several images and heads: numbers that are 1 are constants of a compiled kernel.
    packed = torch.randn(3, 8, 2, layout.num_tokens, head_dim)
    q, k, v = packed.to(getattr(torch, options.dtype)).requires_grad_().unbind()
    name, settings = KINDS[kind]
    terms = ()
    if name is not None:
        encoding = posenc.create_encoding(
            name, layout=layout, num_heads=2, head_dim=head_dim, **settings
        )
        terms = tuple(encoding(q.float(), k.float(), layout))
    mask = None
    if options.mask and kind != "causal":
        mask = torch.ones(layout.num_tokens, layout.num_tokens, dtype=torch.bool)
    dropout = 0.1 if options.dropout else 0.0
    call = AttentionCall(q, k, v, terms, mask, dropout, kind == "causal", None, False)
    backend.compute(call).sum().backward()


def _report(
    passes: list[str], kernel: Any, shape: Any, stages: int, options: argparse.Namespace
) -> dict[str, Any]:
    capability = options.capability
    tools = triton.knobs.nvidia
    assembler = tools.ptxas_blackwell if capability >= 100 else tools.ptxas
    gpu = f"sm_{capability}" + ("a" if capability >= 90 else "")
    made = sass.compile_ptx(kernel.asm["ptx"], (assembler.path, tools.nvdisasm.path), gpu)
    warps, shared = kernel.metadata.num_warps, kernel.metadata.shared
    return {
        "kernel": passes[0],
        "tile": f"{shape.ROWS.value}x{shape.COLUMNS.value}",
        "warps": warps,
        "stages": stages,
        "registers": made.registers,
        "spilled": made.spilled,
        "shared": shared,
        "resident_warps": sass.resident_warps(made.registers, shared, warps, capability),
        "serialized": made.is_serialized,
        **_passes(passes, made.loops, warps, shape, capability),
    }


def _passes(
    passes: list[str], loops: list[sass.Loop], warps: int, shape: Any, capability: int
) -> dict[str, Any]:
    """Per score, summed over the passes that a kernel makes over all tiles."""
    if not any(sass.products(loop, warps) for loop in loops):
        return {}  # float32 without tensor cores
    area = shape.ROWS.value * shape.COLUMNS.value
    totals: Counter[str] = Counter()
    for name, loop in zip(passes, _main_loops(loops, len(passes), warps), strict=False):
        # Compilers unroll: the products of a pass say how many tiles it makes. They are more than
        # needed where warps are too many for a tile, and then do some work twice.
        made = sass.products(loop, warps)
        tiles = made // (area * _width(name, shape))
        if not tiles:
            raise SystemExit(f"{name}: {made} products are too few for {area} scores")
        scale = warps * 32 / (area * tiles)
        operations = sass.operations(loop)
        totals["instructions_per_score"] += len(loop) * scale
        totals["exponentials"] += operations["MUFU"] * scale
        twice = 2 * sass.products(loop, warps, "TF32")
        totals["products"] += (made + twice) / (area * tiles)
        totals["tensor_instructions"] += (operations["HGMMA"] + operations["HMMA"]) / tiles
        totals["atomics"] += sass.atomics(loop) * scale
        for kind, count in sass.loads(loop).items():
            totals[kind] += count * scale
    bound = sass.clocks(
        *(totals["instructions_per_score"], totals.pop("exponentials"), totals["products"]),
        capability,
    )
    return {**{key: round(number, 2) for key, number in totals.items()}, "bound": round(bound, 4)}


def _width(name: str, shape: Any) -> int:
    heads, values, factors = PRODUCTS[name]
    width = heads * shape.HEAD_BLOCK.value + values * shape.VALUE_BLOCK.value
    return width + factors * shape.RANK_BLOCK.value * shape.FOLDED.value


def _main_loops(loops: list[sass.Loop], passes: int, warps: int) -> list[sass.Loop]:
    """Of each pass the loop that does most; the others are at the edges of a walk."""
    loops = [loop for loop in loops if sass.products(loop, warps)]
    parts = [loops]
    if passes == 2:  # the second one adds to sums
        parts = [[x for x in loops if bool(sass.atomics(x)) == adds] for adds in (False, True)]
    return [max(part, key=lambda loop: (sass.products(loop, warps), -len(loop))) for part in parts]


def peers(rows: list[dict[str, Any]], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Plain attention's kernels of those tiles that have none yet."""
    known = {_tile(row) for row in rows if row["kind"] == "plain"}
    given, default = blocks.candidates, options.kernels
    for row in rows:
        if "bound" not in row or _tile(row) in known or row["kernel"] == "table_gradient":
            continue
        known.add(_tile(row))
        block = blocks.Blocks(*map(int, row["tile"].split("x")), row["warps"], row["stages"])
        blocks._found.clear()
        blocks.candidates, options.kernels = lambda *_, block=block: (block,), [row["kernel"]]
        yield from inspect(["plain"], options)
    blocks.candidates, options.kernels = given, default


def with_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adds how many times the bound of plain attention's kernel of the same tile each bound is."""
    plain = {_tile(row): row for row in rows if row["kind"] == "plain"}
    for row in rows:
        peer = plain.get(_tile(row))
        if peer is not None and "bound" in row and "bound" in peer:
            row["bound_to_plain"] = round(row["bound"] / peer["bound"], 2)
    return rows


def _tile(row: dict[str, Any]) -> tuple[object, ...]:
    return row["kernel"], row["tile"], row["warps"], row["stages"]


def _line(row: dict[str, Any]) -> str:
    text = (
        f"{row['kind']:>22} {row['kernel']:>16} {row['tile']:>7} {row['warps']} warps: "
        f"{row['registers']:3d} registers, {row['spilled']} bytes spilled, "
        f"{row['shared'] / 1024:5.1f} KiB shared, {row['resident_warps']} resident warps"
    )
    if "bound" in row:
        text += f", {row['instructions_per_score']:5.1f} per score, bound {row['bound']:.4f}"
    return text + ", serialized" * row["serialized"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--capability", type=int, default=90)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--kernels", nargs="+", default=KERNELS, choices=KERNELS)
    parser.add_argument("--grid", type=int, nargs=2, default=(32, 32))
    parser.add_argument("--prefix", type=int, default=1)
    parser.add_argument("--dropout", action="store_true")
    parser.add_argument("--mask", action="store_true", help="a boolean one as well")
    parser.add_argument("--deterministic", action="store_true")
    parser.add_argument(
        "--block",
        type=int,
        nargs=4,
        metavar=("QUERIES", "KEYS", "WARPS", "STAGES"),
        help="in place of the default tiles",
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.use_deterministic_algorithms(options.deterministic)
    if options.block:
        blocks.candidates = lambda *_: (blocks.Blocks(*options.block),)
    rows = []
    for row in inspect(options.kinds, options):
        rows.append(row)
        print(_line(row), flush=True)
    if "plain" in options.kinds:
        rows += peers(rows, options)
    if options.json:
        given = shlex.join(["python", "benchmarks/inspect_kernels.py", *sys.argv[1:]])
        report = {
            "command": given,
            "triton": triton.__version__,
            "capability": options.capability,
            "kernels": with_ratios(rows),
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
