"""What this machine has for attention with positions, and what is wrong with it."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

import posenc
from posenc.attention import trust
from posenc.attention.api import make_call
from posenc.attention.backends import triton
from posenc.attention.fused import loses_gradients
from posenc.layout import TokenLayout
from posenc.terms import DenseBias, Term

REQUIRED = ("torch", "timm", "einops", "safetensors")
OPTIONAL = ("triton", "transformers", "matplotlib")
LAYOUT = TokenLayout(14, 14, prefix=1)
# One of each kind of term that the kernels know, as encodings give them.
KINDS = {
    "static tables": ("swin", {}),
    "contextual tables": ("irpe", {}),
    "value tables": ("irpe", {"on": "qkv"}),
    "low rank": ("human_part", {}),
}


class Finding(NamedTuple):
    """One line of the report."""

    state: str  # "ok", "note" or "broken"
    text: str


def examine() -> Iterator[Finding]:
    """Versions, devices, and for each device how attention is computed there."""
    yield Finding("ok", f"posenc {posenc.__version__}, Python {platform.python_version()}")
    yield Finding("ok", ", ".join(f"{name} {_version(name)}" for name in REQUIRED))
    yield Finding("ok", ", ".join(f"{name} {_version(name) or 'absent'}" for name in OPTIONAL))
    yield Finding("ok", f"cpu: {torch.get_num_threads()} threads, {_sdpa(torch.device('cpu'))}")
    yield _agreement(torch.device("cpu"))
    for number in range(torch.cuda.device_count()):
        yield from _examine_gpu(torch.device("cuda", number))
    if not torch.cuda.is_available():
        yield Finding("note", "no CUDA device: the fused kernels do not run here")


def _examine_gpu(device: torch.device) -> Iterator[Finding]:
    name, architecture = torch.cuda.get_device_name(device), trust.architecture(device.index)
    yield Finding("ok", f"{device}: {name} ({architecture}), {_sdpa(device)}")
    yield _agreement(device)
    capability = torch.cuda.get_device_capability(device)
    if loses_gradients(64, capability, torch.backends.cudnn.version()):
        yield Finding(
            "note",
            f"{device}: cuDNN's attention can return NaN as the gradient of queries beside a mask "
            "(PyTorch 196678); posenc takes another kernel there",
        )
    for kind in KINDS:
        yield _kernels(kind, device)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _sdpa(device: torch.device) -> str:
    """Which of PyTorch's kernels plain attention takes, and attention with a bias as a mask."""
    query = _queries(device)
    bias = DenseBias(torch.zeros(1, 1, LAYOUT.num_tokens, LAYOUT.num_tokens, device=device))
    kernels = [_kernel(query), _kernel(query, bias)]
    return "fused attention by {}, with a mask by {}".format(*kernels)


def _kernel(query: Tensor, *terms: Term) -> str:
    with torch.no_grad():
        found = posenc.explain(query, query, query, terms, backend="sdpa")
    return found.sdpa_kernel or "an unknown kernel"


def _agreement(device: torch.device) -> Finding:
    """Whether `auto` gives what the definition gives: a small call with a table."""
    query = _queries(device, torch.float32)
    terms = _terms("swin", {}, query)
    with torch.no_grad():
        auto, exact = (
            posenc.attend(query, query, query, terms, backend=name)
            for name in ("auto", "reference")
        )
    error = (auto - exact).abs().max().item()
    text = f"{device}: attention with a table is {error:.1g} off plain mathematics"
    return Finding("ok" if error < 1e-2 else "broken", text)


def _kernels(kind: str, device: torch.device) -> Finding:
    """Whether the fused kernels may be taken for terms of a kind, checked here if need be."""
    name, options = KINDS[kind]
    query = _queries(device).requires_grad_()
    call = make_call(
        query, query, query, _terms(name, options, query), None, 0.0, False, None, False
    )
    label = f"{device}: fused kernels for {kind}"
    if (reason := triton.rejects(call)) is not None:
        return Finding("note", f"{label}: {reason}")
    is_trusted, why = trust.verdict(call)
    return Finding("ok" if is_trusted else "broken", f"{label}: {why}")


def _queries(device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    dtype = dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16)
    generator = torch.Generator("cpu").manual_seed(0)
    numbers = torch.randn(1, 2, LAYOUT.num_tokens, 64, generator=generator, device="cpu")
    return numbers.to(device, dtype)


def _terms(name: str, options: dict[str, Any], query: Tensor) -> tuple[Term, ...]:
    encoding = posenc.create_encoding(
        name, layout=LAYOUT, num_heads=2, head_dim=64, device=query.device, **options
    )
    with torch.no_grad():
        for at, parameter in enumerate(encoding.parameters()):  # zeros would show nothing
            parameter.copy_(torch.linspace(-at - 1, at + 1, parameter.numel()).view_as(parameter))
    terms: tuple[Term, ...] = encoding(query, query, LAYOUT)
    return terms
