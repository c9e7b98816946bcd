"""Attention with encodings over plain SDPA, by default and by each of its kernels' names."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import timing
import torch
import torch.nn.functional as F
from cases import Shape, inputs, parse_case
from contenders import Contender, Ours, Plain
from measure import Roof, Setting, head, measure, no_numbers
from peers import peers_of
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpu.ahead import compile_ahead
from gpu.kernel_times import kernel_milliseconds
from gpu.part import Part, Row
from gpu.workers import device_works
from posenc._torch import chosen_sdpa_kernel

# By number of tokens, in order of importance.
SHAPES = {
    "1025": Shape(64, 12, 64, 32, 32),
    "197": Shape(64, 12, 64, 14, 14),
    "577": Shape(64, 12, 64, 24, 24),
    "2305": Shape(64, 12, 64, 48, 48),
}
DRY_SHAPES = {"7": Shape(1, 1, 16, 2, 3), "9": Shape(1, 1, 16, 4, 2)}
# One of each kind of term, which goals are about, and more.
FIRST = ("swin", "irpe", "human_part", "irpe on=qkv")
MORE = (
    "quadratic",
    "irpe on=qk",
    "irpe mode=bias",
    "rope",
    "decomposed",
    "irpe method=cross",
    "irpe method=cross on=qkv",
)
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
SECONDS, MOST_PAIRS = 1.0, 21  # of a ratio: a device is steadier than a shared CPU
SHOWN_KERNELS = 8


class NamedPlain(nn.Module):
    """Plain SDPA by one of its kernels."""

    def __init__(self, kernel: str) -> None:
        super().__init__()
        self.kernel = KERNELS[kernel]

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Or an error, where the kernel does not take the call."""
        with sdpa_kernel(self.kernel):
            return F.scaled_dot_product_attention(q, k, v)


class Masked(nn.Module):
    """SDPA with a finished mask, the same for all images, whose rows are aligned."""

    def __init__(self, mask: Tensor, kernel: str) -> None:
        super().__init__()
        self.mask, self.kernel = nn.Parameter(mask), kernel

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """By the kernel, or by PyTorch's choice."""
        mask = self.mask[..., : k.shape[2]]
        if self.kernel == "default":
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        with sdpa_kernel(KERNELS[self.kernel]):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


@dataclass(frozen=True)
class PlainBy:
    """A row: plain SDPA by the name of a kernel."""

    backend: str
    case = "plain"

    def build(
        self, shape: Shape, device: torch.device, dtype: torch.dtype
    ) -> tuple[nn.Module, nn.Module]:
        """Defined by SDPA in float64."""
        return NamedPlain(self.backend), Plain()


@dataclass(frozen=True)
class MaskBy:
    """A row: what a bias costs that is a mask already."""

    backend: str
    case = "mask"

    def build(
        self, shape: Shape, device: torch.device, dtype: torch.dtype
    ) -> tuple[nn.Module, nn.Module]:
        """Defined in float64, with the same numbers."""
        tokens = shape.layout.num_tokens
        size = (1, shape.heads, tokens, -(-tokens // 8) * 8)
        mask = torch.randn(size, device=device).to(dtype)
        return Masked(mask, self.backend), Masked(mask.double(), "default")


@dataclass(frozen=True)
class Cell:
    """What one row of the report measures."""

    contender: Contender
    shape: str
    backward: bool
    deterministic: bool = False

    def __str__(self) -> str:
        words = [self.contender.case, self.contender.backend, self.shape]
        words.append("training" if self.backward else "forward")
        return ", ".join([*words, "deterministic"] if self.deterministic else words)


def run(part: Part) -> None:
    """All cells, in order of importance, as long as there is time."""
    device, dtype = of_run(part.dry)
    timing.SECONDS, timing.MOST_PAIRS = SECONDS, MOST_PAIRS
    torch._dynamo.config.recompile_limit = 256  # FlexAttention is one function for all cells
    shapes = DRY_SHAPES if part.dry else SHAPES
    tasks = {
        f"{label} {backend}": partial(compile_one, label, backend, part.dry)
        for backend in ("triton", "flex")
        for label in (*FIRST, *MORE)
    }
    compile_ahead(part, tasks, share=0.3)
    roof = measured_roof(device, dtype, part.dry)
    part.write(
        dtype=str(dtype).removeprefix("torch."),
        roof_tflops=roof.flops / 1e12,
        roof_gbytes_per_s=roof.bandwidth / 1e9,
        sdpa_default=default_kernels(shapes, device, dtype),
    )
    for cell in part.each(cells(tuple(shapes), part.options.get("irpe_repo"), part.dry)):
        setting = Setting(device, dtype, cell.backward, 2 if part.dry else None, roof)
        part.add(row_of(cell, shapes[cell.shape], setting))


def cells(names: tuple[str, ...], irpe_repo: Path | None, dry: bool) -> Iterator[Cell]:
    """In order of importance: the goals, their peers, other sizes, other encodings."""
    main, *others = names
    plain = [PlainBy(kernel) for kernel in KERNELS]
    masks = [MaskBy(kernel) for kernel in ("default", "efficient", "cudnn")]
    ours = [Ours(parse_case(label), "triton") for label in FIRST]
    yield from _both([*plain, *ours], main)
    yield from (Cell(one, main, backward=True, deterministic=True) for one in ours[:2])
    peers = [peer for label in FIRST for peer in peers_of(parse_case(label), irpe_repo)]
    by_others = [
        Ours(parse_case(label), backend)
        for label in FIRST
        for backend in ("sdpa", "lowrank", "flex")
    ]
    yield from _both([*masks, *by_others, *peers], main)
    if dry:
        yield from _both([*plain[:1], *ours[:1]], others[0])
        return
    for name in others:
        yield from _both([*plain, *ours, *masks[:1], *by_others], name)
    backends = ("triton", "lowrank", "sdpa", "flex", "reference")
    yield from _both(
        [Ours(parse_case(label), backend) for label in MORE for backend in backends], main
    )
    yield from _both([Ours(parse_case(label), "reference") for label in FIRST], main)


def _both(contenders: list[Contender], shape: str) -> Iterator[Cell]:
    """Training first: what it needs is more, and less is known of it."""
    for contender in contenders:
        yield Cell(contender, shape, backward=True)
        yield Cell(contender, shape, backward=False)


def row_of(cell: Cell, shape: Shape, setting: Setting) -> Row:
    """Its numbers, or why there are none; only a device that is lost ends the part."""
    row = {
        **head(cell.contender, cell.shape, shape),
        "pass": "training" if cell.backward else "forward",
        "deterministic": cell.deterministic,
    }
    with fixed_sums(cell.deterministic):
        try:
            row |= measure(cell.contender, shape, setting)
        except Exception as error:
            row |= no_numbers(cell.contender.backend, "error", _said(error))
        if row["failure"] is None:
            try:
                row |= on_device(cell.contender, shape, setting)
            except Exception as error:
                row["device_failure"] = _said(error)
    gc.collect()
    if setting.device.type == "cuda":
        torch.cuda.empty_cache()
    return row


def _said(error: Exception) -> str:
    """What it says, while there is a device to go on with."""
    if not device_works():
        raise error
    return f"{type(error).__name__}: {error}"[:500]


def on_device(contender: Contender, shape: Shape, setting: Setting) -> Row:
    """The time of the kernels alone, which the host of small calls hides, and of which kernels."""
    tensors = inputs(shape, setting.device, setting.dtype)
    module, _ = contender.build(shape, setting.device, setting.dtype)
    ours, plain = (
        kernel_milliseconds(setting.run(each, tensors), setting.device)
        for each in (module, Plain())
    )
    return {
        "device_milliseconds": ours.total(),
        "device_ratio": ours.total() / plain.total() if plain else None,
        "kernels": dict(ours.most_common(SHOWN_KERNELS)),
    }


@contextlib.contextmanager
def fixed_sums(fixed: bool) -> Iterator[None]:
    """PyTorch's deterministic mode."""
    torch.use_deterministic_algorithms(fixed)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def measured_roof(device: torch.device, dtype: torch.dtype, dry: bool) -> Roof:
    """Of this device, in this run."""
    if dry:
        return Roof(
            timing.measured_ceiling(device, dtype, 32), timing.measured_bandwidth(device, 1000)
        )
    return Roof(timing.measured_ceiling(device, dtype), timing.measured_bandwidth(device))


def default_kernels(
    shapes: dict[str, Shape], device: torch.device, dtype: torch.dtype
) -> dict[str, str | None]:
    """Which of its kernels SDPA takes by default."""
    return {
        name: chosen_sdpa_kernel(*inputs(Shape(1, 1, *_sizes(shape)), device, dtype))
        for name, shape in shapes.items()
    }


def _sizes(shape: Shape) -> tuple[int, ...]:
    return shape.head_dim, shape.height, shape.width, shape.prefix


def compile_one(label: str, backend: str, dry: bool) -> None:
    """A training step, and its forward in eval, of a few images."""
    device, dtype = of_run(dry)
    shape = DRY_SHAPES["7"] if dry else SHAPES["1025"].scaled(4, device)
    tensors = inputs(shape, device, dtype)
    module, _ = Ours(parse_case(label), backend).build(shape, device, dtype)
    for backward in (True, False):
        Setting(device, dtype, backward, None, None).run(module, tensors)()
    if not dry:
        torch.cuda.synchronize()


def of_run(dry: bool) -> tuple[torch.device, torch.dtype]:
    """Where, and in which dtype."""
    if dry:
        return torch.device("cpu"), torch.float32
    return torch.device("cuda"), torch.bfloat16
