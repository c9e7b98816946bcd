"""In which precision positions are computed."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Switches autocast off, where it is on: it would silently compute biases in 16 bit."""
    if autocast_dtype(device) is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype of autocast on this device, or None where it is off or does not exist."""
    kind = device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def at_least_float32(*dtypes: torch.dtype) -> torch.dtype:
    """The widest of these, and float32."""
    widest = torch.float32
    for dtype in dtypes:
        widest = torch.promote_types(widest, dtype)
    return widest


def as_mask(bias: Tensor, dtype: torch.dtype) -> Tensor:
    """A bias or a float mask in the dtype of the query, as fused attention takes it.

    Where the dtype cannot hold it each row is shifted first so that its maximum is zero: softmax
    does not see the shift, but a 16-bit float resolves small numbers far better, and a large
    negative number does not become minus infinity in a row that has no other.
    """
    if torch.promote_types(bias.dtype, dtype) == dtype:
        return bias.to(dtype)
    bias = bias.to(at_least_float32(bias.dtype))
    top = bias.detach().amax(dim=-1, keepdim=True)
    return (bias - top.masked_fill(top == float("-inf"), 0.0)).to(dtype)
