"""What the compiler says about the Triton kernels, without a GPU: registers, spills, shared memory.

    python benchmarks/inspect_kernels.py --capability 90 --dtype bfloat16 --head-dim 64

Compiles every kernel that one call with gradients needs, for each kind of term, and prints what
ptxas reports. A spill is what a thread must write to memory because registers do not hold it. This
says whether the kernels compile and fit, and nothing about their speed.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import posenc
from posenc.attention.backends import triton as backend
from posenc.attention.call import AttentionCall
from posenc.attention.kernels import launch

try:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction
except ModuleNotFoundError as missing:
    raise SystemExit(f'{missing}: pip install ".[triton]"') from None

KINDS = {
    "static": ("swin", {}),
    "contextual": ("irpe", {}),
    "contextual on q and k": ("irpe", {"on": "qk"}),
    "cross on q, k and v": ("irpe", {"method": "cross", "on": "qkv"}),
    "value": ("irpe", {"on": "qkv"}),
    "low rank": ("human_part", {}),
    "causal": (None, {}),
}


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

    def compile_only(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        tile = f"{args[-1].ROWS.value}x{args[-1].COLUMNS.value}"
        kernel = original(self, *args, grid=grid, warmup=True, **options)
        compiled.append({"kernel": self.__name__, "tile": tile, **_report(kernel, capability)})

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
    packed = torch.randn(3, 1, 2, layout.num_tokens, head_dim)
    q, k, v = packed.to(getattr(torch, options.dtype)).requires_grad_().unbind()
    name, settings = KINDS[kind]
    terms = ()
    if name is not None:
        encoding = posenc.create_encoding(
            name, layout=layout, num_heads=2, head_dim=head_dim, **settings
        )
        terms = tuple(encoding(q.float(), k.float(), layout))
    is_causal = name is None
    mask = None
    if options.mask and not is_causal:
        mask = torch.ones(layout.num_tokens, layout.num_tokens, dtype=torch.bool)
    dropout = 0.1 if options.dropout else 0.0
    call = AttentionCall(q, k, v, terms, mask, dropout, is_causal, None, False)
    backend.compute(call).sum().backward()


def _report(kernel: Any, capability: int) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(kernel.asm["ptx"])
        file.flush()
        gpu = f"sm_{capability}" + ("a" if capability >= 90 else "")
        tools = triton.knobs.nvidia
        tool = tools.ptxas_blackwell if capability >= 100 else tools.ptxas
        ptxas = [tool.path, "-v", "--gpu-name", gpu, file.name]
        text = subprocess.run(
            [*ptxas, "-o", "/dev/null"], capture_output=True, text=True, check=True
        ).stderr
    return {
        "registers": int(re.search(r"Used (\d+) registers", text)[1]),
        "spilled": sum(map(int, re.findall(r"(\d+) bytes spill", text))),
        "shared": kernel.metadata.shared,
        "warps": kernel.metadata.num_warps,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--capability", type=int, default=90)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--grid", type=int, nargs=2, default=(32, 32))
    parser.add_argument("--prefix", type=int, default=1)
    parser.add_argument("--dropout", action="store_true")
    parser.add_argument("--mask", action="store_true", help="a boolean one as well")
    parser.add_argument("--deterministic", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.use_deterministic_algorithms(options.deterministic)
    rows = []
    for row in inspect(options.kinds, options):
        rows.append(row)
        print(
            f"{row['kind']:>22} {row['kernel']:>16} {row['tile']:>6}: "
            f"{row['registers']:3d} registers, {row['spilled']:5d} bytes spilled, "
            f"{row['shared'] / 1024:6.1f} KiB shared, {row['warps']} warps",
            flush=True,
        )
    if options.json:
        given = shlex.join(["python", "benchmarks/inspect_kernels.py", *sys.argv[1:]])
        report = {"command": given, "triton": triton.__version__, "kernels": rows}
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
