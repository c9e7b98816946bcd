"""Whether `auto` takes the fused kernels: not before they were seen to compute rightly.

A compiler can break a kernel that is right in Triton's interpreter, and nobody would see it. So the
kernels are *proven* where a passing run on such a device is recorded in `kernels/proven.json` (by
`make gpu`, for an architecture and a version of Triton), and elsewhere *self-checked*: the first
call of a kind in a process first runs the same kernels on a small random call, and compares output
and gradients with plain mathematics in float64. What fails stays with stock operations.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from posenc._torch import constant_under_dynamo, is_symbolic
from posenc.attention import trial
from posenc.attention.call import AttentionCall
from posenc.attention.trial import Grid
from posenc.terms import BiasTerm, LookupBias, LowRankBias, Term

RECORDS = Path(__file__).with_name("kernels") / "proven.json"


class Verdict(NamedTuple):
    """Whether to take the kernels, and what is known of them."""

    is_trusted: bool
    why: str


class Kind(NamedTuple):
    """What decides which kernels are compiled: calls of a kind run the same ones."""

    device: int
    dtype: str
    widths: tuple[int, int]  # of a head and of its values
    terms: tuple[str, ...]
    mask: str
    grid: Grid
    several: tuple[str, ...]  # images or heads
    has_dropout: bool
    is_trained: bool
    numerics: tuple[bool, str]  # deterministic algorithms; precision of products in float32

    def __str__(self) -> str:
        names = [*self.terms, *([self.mask] if self.mask else [])]
        names += [word for word in ("dropout", "training") if getattr(self, _FLAGS[word])]
        names += [f"rows of {self.grid[0]}"] if self.grid[0] else []
        return f"{self.dtype}, heads of {self.widths[0]} and {self.widths[1]}, {', '.join(names)}"


_FLAGS = {"dropout": "has_dropout", "training": "is_trained"}
_verdicts: dict[Kind, Verdict] = {}


def verdict(call: AttentionCall) -> Verdict:
    """Whether `auto` may compute this call by the kernels; the first of a kind is a check."""
    device = call.query.device.index or 0
    if (proof := proof_of(device)) is not None:
        return Verdict(True, proof)
    if torch.compiler.is_compiling() and _has_symbols(call):
        return Verdict(False, "sizes are symbols in this graph, and kernels are made for numbers")
    kind = kind_of(call)
    if (known := _known(*kind)) is not None:
        return Verdict(*known)
    if torch.compiler.is_compiling() or _is_capturing():
        return Verdict(False, "the kernels were not self-checked before this graph was made")
    return _check(call, kind)


def kind_of(call: AttentionCall) -> Kind:
    """The kind of a call that the kernels do not reject."""
    tensors = (call.query, call.key, call.value, *_tensors(call.terms))
    return Kind(
        device=call.query.device.index or 0,
        dtype=str(call.query.dtype).removeprefix("torch."),
        widths=(int(call.query.shape[-1]), int(call.value.shape[-1])),
        terms=tuple(map(_describe, call.terms)),
        mask=_describe_mask(call.mask_4d),
        grid=trial.grid_of(call),
        # By a condition: of a number that is a symbol in Dynamo, a comparison is one, too.
        several=tuple(
            name
            for name, size in zip(("images", "heads"), call.query.shape[:2], strict=True)
            if size > 1
        ),
        has_dropout=call.dropout_p > 0,
        is_trained=torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors),
        numerics=_numerics(),
    )


# Dynamo asks these while it makes a graph, in plain words and numbers.
@constant_under_dynamo
def _numerics() -> tuple[bool, str]:
    return torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()


@constant_under_dynamo
def _known(*kind: Any) -> tuple[bool, str] | None:
    known = _verdicts.get(Kind(*kind))
    return None if known is None else (known.is_trusted, known.why)


@constant_under_dynamo
def proof_of(device: int) -> str | None:
    """Where a passing run on such a GPU, with this Triton, is recorded: words that say so."""
    return _proof_of(architecture(device))


@functools.cache
def _proof_of(name: str | None) -> str | None:
    triton = importlib.metadata.version("triton") if name else None
    for record in json.loads(RECORDS.read_text()):
        if (record["architecture"], record["triton"]) == (name, triton):
            return f"proven on {name} with Triton {triton}"
    return None


@functools.cache
def architecture(device: int) -> str | None:
    """Such as "sm_90"; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    return "sm_{}{}".format(*torch.cuda.get_device_capability(device))


def _has_symbols(call: AttentionCall) -> bool:
    """Of tokens or widths; numbers of images and heads are asked for in a way that traces."""
    tensors = (call.query, call.key, call.value, *_tensors(call.terms))
    return any(is_symbolic(size) for tensor in tensors for size in tensor.shape[2:])


def _is_capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def _check(call: AttentionCall, kind: Kind) -> Verdict:
    """Runs the trial, once for each kind, and says so where it fails."""
    # In a thread of its own, where no mode of the caller is on: neither inference mode, autocast,
    # nor hooks on saved tensors, by which activation checkpointing would count ours as its own.
    with ThreadPoolExecutor(1) as thread:
        fault = thread.submit(trial.fault_of, call, kind.is_trained).result()
    if fault is None:
        _verdicts[kind] = Verdict(True, "self-checked in this process")
    else:
        _verdicts[kind] = Verdict(False, f"the kernels failed their self-check: {fault}")
        warnings.warn(
            f"posenc's fused kernels failed their self-check on {call.query.device} ({kind}): "
            f'{fault}. backend="auto" does not take them for such calls in this process; the '
            "results stay right. Please report this with the output of `posenc doctor`",
            stacklevel=2,
        )
    return _verdicts[kind]


def _describe(term: Term) -> str:
    """Which kernels a term needs: by what reads it, what images share, and what is trained."""
    name = type(term).__name__
    if isinstance(term, LookupBias):
        name += f" by {term.read_by}"
    if isinstance(term, LowRankBias):
        name += f" of rank {int(term.left.shape[-1])}{' (wide)' if term.wide else ''}"
        name += "" if term.exact is None else " or its table"
    tensors = term.tensors()
    if isinstance(term, BiasTerm) and any(tensor.shape[0] > 1 for tensor in tensors.values()):
        name += " of each image"
    trained = [which for which, tensor in tensors.items() if tensor.requires_grad]
    if len(trained) < len(tensors):
        name += "".join(f" {which}" for which in trained)
    return name + (" trained" if trained else "")


def _describe_mask(mask: Tensor | None) -> str:
    return "" if mask is None else f"{str(mask.dtype).removeprefix('torch.')} mask"


def _tensors(terms: tuple[Term, ...]) -> list[Tensor]:
    return [tensor for term in terms for tensor in term.tensors().values()]
