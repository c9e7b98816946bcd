"""Launches the kernels: pointers, strides, constants, and the size of the grid."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from posenc.attention.kernels import blocks
from posenc.attention.kernels.blocks import TABLE, Blocks, Load
from posenc.attention.kernels.forms import Form, slot_offsets
from posenc.attention.kernels.operands import Operands
from posenc.attention.kernels.tiles import Call, Lookup, Mask, Rows, Shape

MIN_BLOCK = blocks.EDGE


class Launcher:
    """Launches kernels for the same operands, by programs that own queries, or keys."""

    def __init__(self, operands: Operands, is_folded: bool, by_key: bool = False) -> None:
        self.operands, self.is_folded, self.by_key = operands, is_folded, by_key
        self.form = Form(operands.height, operands.width, operands.is_blocked)
        self.call = self._call()

    def __call__(
        self,
        name: str,
        kernel: Any,
        count: Callable[[Blocks], int],
        *args: Any,
        sums: Sequence[Tensor] = (),
    ) -> None:
        """Runs so many programs of a kernel, whose last argument is the shape; it adds to sums."""

        def run(size: Blocks) -> None:
            grid = (count(size),)
            shape = self._shape(size)
            kernel[grid](*args, shape, num_warps=size.warps, num_stages=size.stages)

        load = self._load()
        device = self.operands.query.device
        shape = map(str, self._shape(blocks.LEAST))  # Triton 3.4 hashes no constants
        key = (kernel, device, load, *shape, self._structure())
        with _on(device):
            blocks.run_best(key, blocks.candidates(name, load), run, sums)

    def query_tiles(self, size: Blocks) -> int:
        """Of all images and heads."""
        batch, heads, queries, _ = self.operands.query.shape
        return batch * heads * triton.cdiv(queries, size.queries)

    def key_tiles(self, size: Blocks) -> int:
        """Of all images and heads."""
        batch, heads, keys, _ = self.operands.key.shape
        return batch * heads * triton.cdiv(keys, size.keys)

    def pair_tiles(self, size: Blocks) -> int:
        """Of all heads, for one image."""
        _, heads, queries, _ = self.operands.query.shape
        keys = self.operands.key.shape[2]
        return heads * triton.cdiv(queries, size.queries) * triton.cdiv(keys, size.keys)

    def starts(self, buckets: Tensor | None) -> tuple[Tensor, ...]:
        """For each term: where the row of a slot's bucket begins in `[T, N]` entries, in bytes."""
        if buckets is None:
            return ()
        size = self.operands.query.shape[2] * torch.float32.itemsize
        return (buckets * size).index_select(-1, self.slot_offsets()).unbind()

    def slot_offsets(self) -> Tensor:
        """The entry of an operand that each slot copies."""
        device, has_prefix = self.operands.query.device, self.operands.prefix > 0
        return slot_offsets(self.form, has_prefix, self.by_key, device)

    def lookup(self, entries: Tensor | None, buckets: Tensor | None) -> Lookup | None:
        """To read, or None."""
        if entries is None:
            return None
        return Lookup(rows(entries.contiguous()), self.starts(buckets))

    def _call(self) -> Call:
        operands = self.operands
        query, key, value, table = operands[:4]
        if table is not None:
            table = table.index_select(-1, self.slot_offsets())[:, :, None]
        return Call(
            query=read_only(query),
            key=read_only(key),
            value=read_only(value),
            table=None if table is None else read_only(table),
            query_lookup=self.lookup(operands.query_lookup, operands.query_buckets),
            key_lookup=self.lookup(operands.key_lookup, operands.key_buckets),
            left=None if operands.left is None else read_only(operands.left),
            right=None if operands.right is None else read_only(operands.right),
            # As numbers: a pointer to booleans is not the same everywhere.
            keep=_mask(None if operands.keep is None else operands.keep.view(torch.uint8)),
            mask=_mask(operands.mask),
            seed=operands.seed,
            heads=query.shape[1],
            queries=query.shape[2],
            keys=key.shape[2],
            prefix=operands.prefix,
            height=operands.height,
            scale=operands.scale,
            dropout=operands.dropout_p,
        )

    def _shape(self, size: Blocks) -> Shape:
        operands, form = self.operands, self.form
        head_dim, value_dim = operands.query.shape[-1], operands.value.shape[-1]
        rank = 0 if operands.left is None else operands.left.shape[-1]
        in_float32 = operands.query.dtype == torch.float32
        # As for PyTorch's own products; factors lose nothing in either.
        exact = "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
        numbers = (
            *(size.queries, size.keys, self._edge(size)),
            *(head_dim, _block(head_dim), value_dim, _block(value_dim)),
            *(rank, _block(rank), self.is_folded),
            operands.is_causal,
            exact,
            "ieee" if in_float32 else "tf32x3",
            *(form.width, form.blocked, form.run),
        )
        return Shape(*map(tl.constexpr, numbers))

    def _edge(self, size: Blocks) -> int:
        """Small tiles for what the main loop leaves over, few enough registers for all it does."""
        whole = size.queries if self.by_key else size.keys
        return whole if self.operands.is_causal else MIN_BLOCK

    def _load(self) -> Load:
        operands = self.operands
        tables = operands.query_buckets, operands.key_buckets, operands.value_buckets
        reads = sum(len(buckets) for buckets in tables if buckets is not None)
        reads += (operands.keep is not None) + (operands.mask is not None)
        width = max(operands.query.shape[-1], operands.value.shape[-1])
        factors = "none" if operands.left is None else "halves" if self.is_folded else "float32"
        return Load(
            architecture(operands.query.device),
            _block(width),
            operands.query.itemsize,
            reads,
            blocks.fills_large(operands.key.shape[2], operands.prefix, operands.width),
            factors,
        )

    def _structure(self) -> tuple[object, ...]:
        """What else the speed depends on: the operands, the kind of sums, about how many tokens."""
        sizes = (self.call.queries.bit_length(), self.call.keys.bit_length())
        return *sizes, blocks.sums_are_fixed(), *(operand is None for operand in self.operands)


def architecture(device: torch.device) -> int:
    """The first number of the compute capability; in the interpreter, any."""
    return torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else max(TABLE)


def is_interpreted() -> bool:
    """Whether Python runs the kernels."""
    return bool(triton.knobs.runtime.interpret)


def rows(tensor: Tensor) -> Rows:
    """A `[B, heads, rows, columns]` tensor, columns side by side; axes of size 1 are shared."""
    return Rows(tensor, *_strides(tensor)[:3])


def read_only(tensor: Tensor) -> Rows:
    """The same of a tensor whose columns may lie apart."""
    return rows(tensor if tensor.stride(-1) == 1 else tensor.contiguous())


def _mask(mask: Tensor | None) -> Mask | None:
    return None if mask is None else Mask(mask, *_strides(mask))


def _strides(tensor: Tensor) -> tuple[int, ...]:
    sizes = zip(tensor.stride(), tensor.shape, strict=True)
    return tuple(0 if size == 1 else stride for stride, size in sizes)


def _block(width: int) -> int:
    return max(MIN_BLOCK, triton.next_power_of_2(width))


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Kernels are launched on the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
