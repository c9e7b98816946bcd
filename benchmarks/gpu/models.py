"""Whole models: inference and a training step, patched over unpatched, eager and compiled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import timing
import timm
import torch
from bench_model import forward, patched_copy, training_step
from torch import Tensor, nn

from gpu.ahead import compile_ahead
from gpu.part import Part, Row
from gpu.workers import device_works

MODELS = {"vit_small_patch16_224": 128, "vit_base_patch16_224": 64}  # images of a batch
DRY_MODELS = {"vit_tiny_patch16_224": 2}
TINY = {"img_size": 32, "depth": 2, "embed_dim": 32, "num_heads": 2}
ENCODINGS = ("nothing", "swin", "irpe", "human_part", "rope")


@dataclass(frozen=True)
class Cell:
    """A row of the report."""

    model: str
    encoding: str
    backward: bool
    compiled: bool

    def __str__(self) -> str:
        words = self.model, self.encoding, "training" if self.backward else "forward"
        return ", ".join([*words, "compiled"] if self.compiled else words)


def run(part: Part) -> None:
    """All cells: eager ones first, which need no compiler."""
    timing.SECONDS, timing.MOST_PAIRS = 1.0, 15
    planned = cells(part.dry)
    tasks = {str(cell): partial(compile_one, cell, part.dry) for cell in planned if cell.compiled}
    compile_ahead(part, tasks, share=0.4, threads=2)
    for cell in part.each(planned):
        part.add(row_of(cell, part.dry))


def cells(dry: bool) -> list[Cell]:
    """In order of importance."""
    models = tuple(DRY_MODELS if dry else MODELS)
    encodings = ("nothing", "swin") if dry else ENCODINGS
    to_compile = encodings[-1:] if dry else encodings[:3]  # a minute each
    return [
        Cell(model, encoding, backward, compiled)
        for compiled in (False, True)
        for model in (models[:1] if compiled else models)
        for encoding in (to_compile if compiled else encodings)
        for backward in (True, False)
    ]


def row_of(cell: Cell, dry: bool) -> Row:
    """Its ratio and milliseconds, or why there are none."""
    row = {
        "model": cell.model,
        "encoding": cell.encoding,
        "pass": "training" if cell.backward else "forward",
        "compiled": cell.compiled,
    }
    try:
        return {**row, **measured(cell, dry), "failure": None}
    except Exception as error:
        if not device_works():
            raise
        return {**row, "median": None, "failure": f"{type(error).__name__}: {error}"[:500]}


def measured(cell: Cell, dry: bool) -> Row:
    """The pairs of times, under autocast on a device."""
    device = torch.device("cpu" if dry else "cuda")
    plain, patched, images = models_of(cell, device)
    runs = [one_run(model, images, cell, device, dry) for model in (plain, patched)]
    times = timing.paired_times(*runs, device, 2 if dry else None)
    milliseconds = sorted(times.other)[len(times.other) // 2] * 1000
    return {
        **vars(times.ratio),
        "milliseconds": milliseconds,
        "images_per_second": len(images) / milliseconds * 1000,
        "batch": len(images),
    }


def models_of(cell: Cell, device: torch.device) -> tuple[nn.Module, nn.Module, Tensor]:
    """(unpatched, patched, images)."""
    torch.manual_seed(0)
    on_cpu = device.type == "cpu"
    plain = timm.create_model(cell.model, **(TINY if on_cpu else {})).eval().to(device)
    patched = patched_copy(plain, cell.encoding)
    batch = (DRY_MODELS if on_cpu else MODELS)[cell.model]
    return plain, patched, torch.randn(batch, 3, *plain.patch_embed.img_size, device=device)


def one_run(
    model: nn.Module, images: Tensor, cell: Cell, device: torch.device, dry: bool
) -> Callable[[], Any]:
    """What is timed."""
    if cell.compiled:
        torch.compiler.reset()  # else models of a class share a limited number of graphs
        model = torch.compile(model, backend="aot_eager" if dry else "inductor")
    step = (training_step if cell.backward else forward)(model, images)

    def run() -> object:
        with torch.autocast(device.type, torch.bfloat16, enabled=not dry):
            return step()

    return run


def compile_one(cell: Cell, dry: bool) -> None:
    """A call of both models."""
    device = torch.device("cpu" if dry else "cuda")
    plain, patched, images = models_of(cell, device)
    for model in (plain, patched):
        one_run(model, images, cell, device, dry)()
    if not dry:
        torch.cuda.synchronize()
