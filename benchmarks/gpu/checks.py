"""One check each of the kernels on the device, against float64: its row, or an AssertionError."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import interpreter
import kernel_calls
import pytest
import torch
import torch.nn.functional as F
from random_calls import mask_of
from torch import Tensor

import posenc
from gpu.part import Row
from gpu.workers import die_with_parent
from posenc.attention import attention_matrix
from posenc.bench.cases import Shape, inputs, parse_case
from posenc.bench.contenders import Ours
from posenc.bench.passes import gradients as gradients_of
from posenc.terms import ValueLookup

ROOT = Path(__file__).parents[2]
SECONDS = 90  # of another process
Grid = tuple[int, int, int]  # height, width, prefix


def start() -> None:
    """What each process does first."""
    torch.set_num_threads(1)
    patch = pytest.MonkeyPatch()
    kernel_calls.poison(patch)
    if kernel_calls.DEVICE == "cpu":
        interpreter.repair(patch)


def tolerance(dtype: torch.dtype) -> float:
    """Of the largest entry: rounded factors in 16 bits, the order of sums in float32."""
    return (64 if dtype == torch.float32 else 8) * torch.finfo(dtype).eps


def judged(errors: dict[str, float], allowed: float) -> Row:
    """The largest error.

    Raises:
        AssertionError: it is too large, or no number.
    """
    wrong = {name: error for name, error in errors.items() if not error <= allowed}
    assert not wrong, f"errors above {allowed:.2g} of the largest entry: {wrong}"
    return {"error": max(errors.values()), "allowed": allowed}


def terms(kind: str, layout: Grid, dtype: str, widths: tuple[int, int]) -> Row:
    """Output and every gradient of random terms."""
    torch.manual_seed(0)
    calls, leaves = kernel_calls.random_terms(kind, layout, widths[1])
    tensors = kernel_calls.qkv(_tokens(layout), *widths, dtype=getattr(torch, dtype))
    _, errors = kernel_calls.compare_to_reference(tensors, calls, leaves)
    return judged(errors, tolerance(tensors[0].dtype))


def masked(kind: str | None, axes: str, boolean: bool, layout: Grid) -> Row:
    """The same with a mask, in float32; a fully masked row is zero."""
    torch.manual_seed(0)
    calls, leaves = kernel_calls.random_terms(kind, layout) if kind else ([], [])
    mask = mask_of(axes, _tokens(layout), boolean, torch.float32).detach().to(kernel_calls.DEVICE)
    tensors = kernel_calls.qkv(_tokens(layout))
    out, errors = kernel_calls.compare_to_reference(tensors, calls, leaves, attn_mask=mask)
    if axes[-2] == "N":
        assert not out[:, :, 2].any(), "a fully masked row is not zero"
    return judged(errors, tolerance(torch.float32))


def plain(queries: int, keys: int, dtype: str, widths: tuple[int, int], causal: bool) -> Row:
    """Without terms: cross attention and causal attention as in SDPA."""
    torch.manual_seed(0)
    numbers = partial(kernel_calls.numbers, 2, 3, dtype=getattr(torch, dtype))
    tensors = [numbers(queries, widths[0]), numbers(keys, widths[0]), numbers(keys, widths[1])]
    exact = [x.detach().double().requires_grad_() for x in tensors]
    out = posenc.attend(*tensors, is_causal=causal, backend="triton")
    expected = F.scaled_dot_product_attention(*exact, is_causal=causal)
    errors = _errors(
        [out, *kernel_calls.gradients(out, tensors)],
        [expected, *kernel_calls.gradients(expected, exact)],
    )
    return judged(errors, tolerance(out.dtype))


def encoding(
    label: str,
    backend: str,
    size: tuple[int, int, int],
    layout: Grid,
    dtype: str,
    allowed: float | None = None,
) -> Row:
    """An encoding as a model calls it, in training and in eval, where it remembers."""
    device = torch.device(kernel_calls.DEVICE)
    shape = Shape(*size, *layout)
    torch.manual_seed(0)
    tensors = inputs(shape, device, getattr(torch, dtype))
    module, definition = Ours(parse_case(label), backend).build(shape, device, tensors[0].dtype)
    reason = module.choice(*(x.detach().requires_grad_() for x in tensors))[1]
    if reason is not None:
        return {"rejected": reason}
    upstream = torch.randn_like(tensors[-1])
    out, found = gradients_of(module.train(), tensors, upstream)
    exact_tensors = tuple(x.double() for x in tensors)
    expected, exact = gradients_of(definition.train(), exact_tensors, upstream)
    errors = _errors([out, *found], [expected, *exact])
    with torch.no_grad():
        for call in ("first", "second"):
            errors[f"eval, {call} call"] = _error(module.eval()(*tensors), expected)
    return judged(errors, allowed or tolerance(out.dtype))


def repeated(
    kind: str, layout: Grid, dtype: str, widths: tuple[int, int], runs: int, fixed: bool
) -> Row:
    """Many runs of the same: a race changes more than the order of sums; `fixed`: nothing does."""
    torch.manual_seed(0)
    calls, leaves = kernel_calls.random_terms(kind, layout, widths[1])
    tensors = kernel_calls.qkv(_tokens(layout), *widths, dtype=getattr(torch, dtype))
    torch.use_deterministic_algorithms(fixed)
    try:
        results = []
        for _ in range(runs):
            out = posenc.attend(*tensors, calls, backend="triton")
            results.append([out, *kernel_calls.gradients(out, [*tensors, *leaves])])
    finally:
        torch.use_deterministic_algorithms(False)
    first, *others = results
    apart = max(
        _distance(one, two) for other in others for one, two in zip(first, other, strict=True)
    )
    assert apart <= (0 if fixed else 1), f"runs differ by {apart:.2g} of what sums explain"
    exact_calls, exact_leaves, exact = kernel_calls.in_float64(calls, leaves, tensors)
    expected = posenc.attend(*exact, exact_calls, backend="reference")
    theirs = [expected, *kernel_calls.gradients(expected, [*exact, *exact_leaves])]
    return {**judged(_errors(first, theirs), tolerance(tensors[0].dtype)), "runs_differ": apart}


def _distance(one: Tensor, two: Tensor) -> float:
    """Over what another order of float32 sums explains: a last bit of 16, some of 32."""
    one, two = one.detach(), two.detach()
    eps = max(2 * torch.finfo(one.dtype).eps, 64 * torch.finfo(torch.float32).eps)
    return float((one - two).abs().max() / (eps * one.abs().max()))


def dropout(kind: str, layout: Grid, p: float = 0.4) -> Row:
    """The same weights are dropped in forward and in backward, which are found by values of one."""
    torch.manual_seed(0)
    tokens = _tokens(layout)
    calls, leaves = kernel_calls.random_terms(kind, layout)
    tensors = kernel_calls.qkv(tokens)
    exact_calls, exact_leaves, exact = kernel_calls.in_float64(calls, leaves, tensors)
    kept = _kept(tensors[0].detach(), tokens, p)
    share = kept.double().mean().item()
    assert abs(share - (1 - p)) < 6 * (p * (1 - p) / kept.numel()) ** 0.5, f"{share} are kept"
    torch.manual_seed(3)
    out = posenc.attend(*tensors, calls, dropout_p=p, backend="triton")
    biases = [term for term in exact_calls if not isinstance(term, ValueLookup)]
    attention = attention_matrix(*exact, biases) * kept / (1 - p)
    expected = attention @ exact[2]
    for term in exact_calls:
        if isinstance(term, ValueLookup):
            expected = expected + term.apply(attention)
    errors = _errors(
        [out, *kernel_calls.gradients(out, [*tensors, *leaves])],
        [expected, *kernel_calls.gradients(expected, [*exact, *exact_leaves])],
    )
    return judged(errors, 2 * tolerance(torch.float32))


def _kept(like: Tensor, tokens: int, p: float) -> Tensor:
    """Which weights the seed keeps: those of uniform attention to the unit vectors."""
    zeros = torch.zeros_like(like)
    units = torch.eye(tokens, device=like.device).expand(*like.shape[:2], -1, -1)
    torch.manual_seed(3)
    return posenc.attend(zeros, zeros, units, dropout_p=p, backend="triton") > 0.5 / tokens


def compiled(kind: str, layout: Grid, compiler: str) -> Row:
    """In one graph of `torch.compile`."""
    torch.manual_seed(0)
    calls, leaves = kernel_calls.random_terms(kind, layout)
    tensors = kernel_calls.qkv(_tokens(layout))
    exact_calls, exact_leaves, exact = kernel_calls.in_float64(calls, leaves, tensors)

    @torch.compile(backend=compiler, fullgraph=True)
    def twice(*tensors: Tensor) -> Tensor:
        return posenc.attend(*tensors, calls, backend="triton") * 2

    out = twice(*tensors)
    expected = posenc.attend(*exact, exact_calls, backend="reference") * 2
    errors = _errors(
        [out, *kernel_calls.gradients(out, [*tensors, *leaves])],
        [expected, *kernel_calls.gradients(expected, [*exact, *exact_leaves])],
    )
    return judged(errors, tolerance(torch.float32))


def autotuned(kind: str, layout: Grid) -> Row:
    """What was summed while sizes of tiles were tried does not remain."""
    os.environ["POSENC_AUTOTUNE"] = "1"
    try:
        return terms(kind, layout, "bfloat16", (64, 32))
    finally:
        del os.environ["POSENC_AUTOTUNE"]


def sanitized(tool: str) -> Row:
    """A small call under NVIDIA's compute-sanitizer, where there is one."""
    path = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    command = [path, "--tool", tool, "--error-exitcode", "9"]
    if not Path(path).exists():
        if torch.cuda.is_available():
            return {"skipped": "no compute-sanitizer"}
        command = []  # the call itself, at least
    command += [sys.executable, str(Path(__file__).with_name("small_case.py"))]
    return _in_process(command, PYTORCH_NO_CUDA_MEMORY_CACHING="1")  # so that bounds are seen


def suite(file: str) -> Row:
    """A file of the tests of the kernels, on this device."""
    if importlib.util.find_spec("hypothesis") is None:
        return {"skipped": "no hypothesis"}
    path = f"tests/attention/triton/{file}"
    return _in_process([sys.executable, "-m", "pytest", path, "-p", "no:cacheprovider"])


def _in_process(command: list[str], **variables: str) -> Row:
    """The end of its output; a command that takes too long says nothing.

    Raises:
        AssertionError: it failed.
    """
    path = os.pathsep.join(filter(None, sys.path))
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=die_with_parent,
    ) as process:
        try:
            output, _ = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # what it started, too
            return {"skipped": f"it takes more than {SECONDS} s"}
    assert process.returncode == 0, f"{' '.join(command)}\n{output[-3000:]}"
    return {"output": output[-300:]}


def _tokens(layout: Grid) -> int:
    return posenc.TokenLayout(*layout).num_tokens


def _errors(ours: list[Tensor], theirs: list[Tensor]) -> dict[str, float]:
    return dict(_numbered(ours, theirs))


def _numbered(ours: list[Tensor], theirs: list[Tensor]) -> Iterator[tuple[str, float]]:
    for place, (got, want) in enumerate(zip(ours, theirs, strict=True)):
        yield f"gradient {place}" if place else "out", _error(got, want)


def _error(got: Tensor, want: Tensor) -> float:
    """Over the largest entry, and at least 1; nothing of nothing."""
    if not want.numel():
        return 0.0
    got, want = got.detach().double(), want.detach()
    return float((got - want).abs().max() / want.abs().max().clamp(min=1))
