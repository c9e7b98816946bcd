"""The state that a user passes: taken out of its wrappers, and checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from posenc.patching.reference.source import State

_WRAPPERS = ("model", "state_dict", "module", "model_ema")
_DISTRIBUTED = "module."


def checked_state(state: Any) -> State:
    """Name -> tensor.

    Raises:
        TypeError: no mapping of tensors.
        ValueError: an empty one, one with several states in it, or with values that no parameter
            can have.
    """
    found = _unwrapped(state)
    _check_tensors(found)
    for key, value in found.items():
        if fault := _fault(value):
            raise ValueError(f"the checkpoint's {key} {fault}; nothing was loaded")
    if all(key.startswith(_DISTRIBUTED) for key in found):
        return {key.removeprefix(_DISTRIBUTED): value.detach() for key, value in found.items()}
    return {key: value.detach() for key, value in found.items()}


def _unwrapped(state: Any) -> Mapping[Any, Any]:
    if not isinstance(state, Mapping):
        hint = ": pass its state_dict()" if isinstance(state, nn.Module) else ""
        raise TypeError(
            "state must be a mapping of names to tensors, such as torch.load(path) or "
            f"safetensors.torch.load_file(path) return, got {type(state).__name__}{hint}"
        )
    inside = [key for key in _WRAPPERS if isinstance(state.get(key), (Mapping, nn.Module))]
    if len(inside) > 1:
        raise ValueError(
            f"the checkpoint has weights under {' and '.join(map(repr, inside))}: pass one of "
            f"them, such as state[{inside[0]!r}]"
        )
    return _unwrapped(state[inside[0]]) if inside else state


def _check_tensors(state: Mapping[Any, Any]) -> None:
    if not state:
        raise ValueError("the checkpoint is empty: state must map names to tensors")
    others = [
        f"{key!r} ({type(value).__name__})"
        for key, value in state.items()
        if not isinstance(key, str) or not isinstance(value, Tensor)
    ]
    if others:
        raise TypeError(
            "state must map names to tensors, and these do not: " + listed(others) + ". Of what a "
            "training script saved, pass the weights alone"
        )


def _fault(value: Tensor) -> str | None:
    if value.is_meta:
        return "is on the meta device and has no values"
    if value.layout != torch.strided or value.is_quantized:
        return f"is no dense tensor ({value.layout}, {value.dtype})"
    return None


def listed(names: list[str], limit: int = 20) -> str:
    """Names for a message."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
