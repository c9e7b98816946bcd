"""The numbers of a page, one behind the other."""

from __future__ import annotations

import base64
import sys
from typing import Any

import torch
from torch import Tensor

LARGEST = 1024.0  # of what is stored in 16 bits: far from overflow, and from numbers without bits
TYPES = {torch.float16: "f16", torch.float32: "f32", torch.uint16: "u16", torch.uint32: "u32"}


class Numbers:
    """Arrays in one buffer; the same tensor given twice is stored once."""

    def __init__(self) -> None:
        self.buffer = bytearray()
        self._stored: dict[tuple[int, torch.dtype], tuple[Tensor, dict[str, Any]]] = {}

    def add(self, tensor: Tensor, dtype: torch.dtype) -> dict[str, Any]:
        """Where the page finds it: dtype, shape, offset in bytes, and the scale of its numbers."""
        key = (id(tensor), dtype)
        if key not in self._stored:
            # The tensor is kept beside its entry: an id is one's own as long as one lives.
            self._stored[key] = (tensor, self._append(tensor, dtype))
        return self._stored[key][1]

    def add_half(self, tensor: Tensor) -> dict[str, Any]:
        """In 16 bits: 11 of them for each number, whatever its size."""
        return self.add(tensor, torch.float16)

    def add_index(self, index: Tensor) -> dict[str, Any]:
        """Of whole numbers, in as few bits as they need."""
        return self.add(index, torch.uint16 if int(index.max()) < 2**16 else torch.uint32)

    def base64(self) -> str:
        """The buffer as text."""
        return base64.b64encode(self.buffer).decode("ascii")

    def _append(self, tensor: Tensor, dtype: torch.dtype) -> dict[str, Any]:
        scale = _scale(tensor) if dtype == torch.float16 else 1.0
        scaled = tensor if scale == 1.0 else tensor / scale
        numbers = scaled.detach().to("cpu", dtype).contiguous().numpy()
        offset = len(self.buffer)
        self.buffer += (numbers.byteswap() if sys.byteorder == "big" else numbers).tobytes()
        self.buffer += bytes(-len(self.buffer) % 4)
        return {
            "dtype": TYPES[dtype],
            "shape": list(tensor.shape),
            "offset": offset,
            "scale": scale,
        }


def _scale(tensor: Tensor) -> float:
    """A power of two, so that dividing by it rounds nothing."""
    finite = tensor[tensor.isfinite()]
    largest = float(finite.abs().max()) if finite.numel() else 0.0
    if largest == 0:
        return 1.0
    return float(2.0 ** torch.tensor(largest / LARGEST).log2().ceil().item())
