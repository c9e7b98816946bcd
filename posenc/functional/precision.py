"""In which precision positions are computed."""

from __future__ import annotations

import contextlib
from typing import Any

import torch


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Switches autocast off, where it is on: it would silently compute biases in 16 bit."""
    if autocast_dtype(device) is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype of autocast on this device, or None where it is off or does not exist."""
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)


def at_least_float32(*dtypes: torch.dtype) -> torch.dtype:
    """The widest of these, and float32."""
    widest = torch.float32
    for dtype in dtypes:
        widest = torch.promote_types(widest, dtype)
    return widest
