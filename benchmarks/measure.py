"""One cell of the table: a contender at a shape."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from cases import Shape, inputs
from check import find_error
from contenders import Contender, Encoded, Plain
from memory import peak_bytes
from passes import inference, training
from table import Row
from timing import Times, paired_times
from torch import Tensor, nn

import posenc.memo

BACKWARD_FLOPS = 2.5  # of forward's: five matrix products instead of two
# Each tensor is read or written once in forward and once in backward, and its gradient as well.
TRAINING_MOVES = 3


@dataclass(frozen=True)
class Roof:
    """What a device reaches at best, in this run."""

    flops: float  # per second, of a large matrix product
    bandwidth: float  # bytes per second, of a large copy

    def seconds(self, flops: float, size: float) -> float:
        """Less time is not possible: one of the two takes as long."""
        return max(flops / self.flops, size / self.bandwidth)


@dataclass(frozen=True)
class Setting:
    """What all cells have in common."""

    device: torch.device
    dtype: torch.dtype
    backward: bool
    pairs: int | None
    roof: Roof | None  # None on the CPU, where absolute numbers are not shown

    def run(self, module: nn.Module, tensors: tuple[Tensor, ...]) -> Callable[[], object]:
        """What is timed."""
        return (training if self.backward else inference)(module, tensors)


def head(contender: Contender, name: str, shape: Shape) -> Row:
    """What a row is about."""
    return {
        "case": contender.case,
        "backend": contender.backend,
        "shape": name,
        "layout": str(shape.layout),
        "batch": shape.batch,
        "heads": shape.heads,
        "head_dim": shape.head_dim,
    }


def measure(contender: Contender, shape: Shape, setting: Setting) -> Row:
    """The numbers, or why there are none."""
    torch.manual_seed(0)
    tensors = inputs(shape, setting.device, setting.dtype)
    module, definition = contender.build(shape, setting.device, setting.dtype)
    used, reason = backend_used(contender, module, tensors, setting.backward)
    if reason is not None:
        return no_numbers(used, "rejected", reason)
    try:
        if error := find_error(module, definition, tensors, setting.backward):
            return no_numbers(used, error, f"{error}: not that of the definition in float64")
        plain = setting.run(Plain(), tensors)
        times = paired_times(plain, setting.run(module, tensors), setting.device, setting.pairs)
        fresh, _ = contender.build(shape, setting.device, setting.dtype)
        posenc.memo.clear_cache()  # what a new module makes torch remember is part of its memory
        memory = peak_bytes(setting.run(fresh, tensors), setting.device)
        memory_ratio = memory / peak_bytes(plain, setting.device)
    except torch.OutOfMemoryError as error:
        return no_numbers(used, "out of memory", str(error).splitlines()[0])
    return {
        "backend_used": used,
        **vars(times.ratio),
        "pairs": len(times.plain),
        "memory_ratio": memory_ratio,
        **absolute(times, shape, term_bytes(module, tensors), setting),
        "failure": None,
        "reason": None,
    }


def backend_used(
    contender: Contender, module: nn.Module, tensors: tuple[Tensor, ...], backward: bool
) -> tuple[str, str | None]:
    """(backend, why it rejects the call), in the pass that is timed."""
    if not isinstance(module, Encoded):
        return contender.backend, None
    module.train(backward)
    with torch.set_grad_enabled(backward):
        return module.choice(*(tensor.detach().requires_grad_(backward) for tensor in tensors))


def no_numbers(used: str, failure: str, reason: str) -> Row:
    """A cell that says why in two words, and in the report at length."""
    numbers = dict.fromkeys(["median", "low", "high", "memory_ratio"])
    return {"backend_used": used, **numbers, "failure": failure, "reason": reason}


def term_bytes(module: nn.Module, tensors: tuple[Tensor, ...]) -> int:
    """Of what an encoding hands to attention; none for peers, who have it in other forms."""
    if not isinstance(module, Encoded):
        return 0
    query, key, _ = tensors
    with torch.no_grad():
        terms = module.encoding(query, key, module.layout)
    return sum(tensor.nbytes for term in terms for tensor in term.tensors().values())


def absolute(times: Times, shape: Shape, size_of_terms: int, setting: Setting) -> Row:
    """Milliseconds, and the share of them that the roof would need.

    That counts the FLOPs of plain attention, and each tensor once per pass that must move it.
    """
    if setting.roof is None:
        return {}
    seconds = statistics.median(times.other)
    flops = shape.forward_flops * (1 + BACKWARD_FLOPS * setting.backward)
    size = shape.forward_bytes(setting.dtype) + size_of_terms
    size *= TRAINING_MOVES if setting.backward else 1
    return {
        "milliseconds": seconds * 1000,
        "plain_milliseconds": statistics.median(times.plain) * 1000,
        "roofline_milliseconds": setting.roof.seconds(flops, size) * 1000,
        "share_of_roofline": setting.roof.seconds(flops, size) / seconds,
    }
