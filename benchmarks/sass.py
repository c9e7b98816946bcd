"""Counts machine instructions of a compiled kernel: its loops, and what they consist of.

ptxas and nvdisasm come with Triton and need no GPU. A streaming multiprocessor issues at most
four instructions of 32 threads a clock, so that instructions per score bound a kernel's time from
below, as the products of its tensor cores do, and its exponentials.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ISSUED = 128  # instructions of a thread, per clock and multiprocessor: four of 32 threads
SPECIAL = 16  # exponentials and the like
# Multiplications with addition, in 16 bits, on the tensor cores: by architecture.
PRODUCTS = {8: 1024, 9: 2048}
# What a multiprocessor has: registers, bytes of shared memory, warps.
ROOM = {80: (65536, 164 * 1024, 64), 90: (65536, 228 * 1024, 64)}
RESERVED_SHARED = 1024  # for each block

Loop = list[str]  # its instructions


class Compiled(NamedTuple):
    """What the compiler says of a kernel."""

    registers: int
    spilled: int  # bytes
    is_serialized: bool  # products wait for each other (ptxas C7515)
    loops: list[Loop]


def compile_ptx(ptx: str, tools: tuple[str, str], gpu: str) -> Compiled:
    """With (ptxas, nvdisasm), for a device such as sm_90a."""
    assembler, disassembler = tools
    with tempfile.TemporaryDirectory() as folder:
        source, binary = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        source.write_text(ptx)
        log = _run([assembler, "-v", "--gpu-name", gpu, source, "-o", binary]).stderr
        text = _run([disassembler, "-c", binary]).stdout
    spilled = sum(map(int, re.findall(r"(\d+) bytes spill", log)))
    registers = int(re.search(r"Used (\d+) registers", log)[1])
    return Compiled(registers, spilled, "C7515" in log, loops(text))


def loops(text: str) -> list[Loop]:
    """Those of a disassembled kernel that have no other loop inside, in the order they end."""
    labels, instructions = {}, []
    for line in text.splitlines():
        if label := re.match(r"\s*(\.L\w+):\s*$", line):
            labels[label[1]] = len(instructions)
        elif instruction := re.search(r"/\*[0-9a-f]{4,5}\*/\s+(.*?);", line):
            instructions.append(instruction[1].strip())
    spans = list(_spans(instructions, labels))
    inner = [s for s in spans if not any(s != o and s[0] <= o[0] and o[1] <= s[1] for o in spans)]
    return [instructions[first : last + 1] for first, last in inner]


def _spans(instructions: Sequence[str], labels: dict[str, int]) -> set[tuple[int, int]]:
    """(first, last) of what a branch jumps back over; of itself is the end of a kernel."""
    spans = set()
    for at, instruction in enumerate(instructions):
        target = re.search(r"\bBRA\b.*?(\.L\w+)", instruction)
        if target and labels.get(target[1], at) < at:
            spans.add((labels[target[1]], at))
    return spans


def name(instruction: str) -> str:
    """The operation with its modifiers, without the predicate before it."""
    return re.sub(r"^@!?U?PT?\d*\s+", "", instruction).split()[0]


def operations(loop: Loop) -> Counter[str]:
    """How often each one occurs, without modifiers."""
    return Counter(name(instruction).partition(".")[0] for instruction in loop)


def products(loop: Loop, warps: int, kind: str = "F16") -> int:
    """Multiplications of the tensor cores in one pass of a loop, by all warps of a program.

    Those in 16 bits ("F16"), or those in float32 ("TF32"), each of which takes twice the time.
    """
    names = map(name, loop)
    return sum(_products(each, warps) for each in names if ("TF32" in each) == (kind == "TF32"))


def _products(name: str, warps: int) -> int:
    if shape := re.match(r"HGMMA\.(\d+)x(\d+)x(\d+)\.", name):  # four warps together
        rows, columns, depth = map(int, shape.groups())
        return rows * columns * depth * (warps // 4)
    if shape := re.match(r"HMMA\.16(8)(\d+)\.", name):  # each warp
        return 16 * int(shape[1]) * int(shape[2]) * warps
    return 0


def loads(loop: Loop) -> dict[str, int]:
    """Reads of memory by their width in bits; those past the registers are LDGSTS."""
    widths: Counter[str] = Counter()
    for operation in map(name, loop):
        if operation.startswith(("LDG.", "LDGSTS.")):
            kind = operation.partition(".")[0]
            width = re.search(r"\.(64|128)\b", operation)
            widths[f"{kind} {width[1] if width else 32}"] += 1
    return dict(widths)


def atomics(loop: Loop) -> int:
    """Additions in memory."""
    return sum(count for op, count in operations(loop).items() if op in ("RED", "REDG", "ATOMG"))


def clocks(instructions: float, exponentials: float, products: float, capability: int) -> float:
    """The least that a score takes of a multiprocessor, from what it takes of each part."""
    speed = PRODUCTS[min(capability // 10, max(PRODUCTS))]
    return max(instructions / ISSUED, exponentials / SPECIAL, products / speed)


def resident_warps(registers: int, shared: int, warps: int, capability: int) -> int:
    """How many a multiprocessor holds at a time."""
    all_registers, all_shared, all_warps = ROOM[capability]
    per_warp = -(-registers // 8) * 8 * 32
    blocks = min(
        all_registers // (per_warp * warps),
        all_shared // (shared + RESERVED_SHARED),
        all_warps // warps,
    )
    return blocks * warps


def _run(command: Sequence[object]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
