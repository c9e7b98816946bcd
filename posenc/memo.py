"""Remembered tensors: those that follow from a layout alone, and dense static biases."""

from __future__ import annotations

import functools
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch

from posenc._torch import (
    has_dispatch_mode,
    has_forward_gradients,
    is_function_transformed,
    is_tracing,
)

F = TypeVar("F", bound=Callable[..., Any])

LIMIT_BYTES = 512 * 2**20  # all remembered tensors together; the least recently used go first

_entries: OrderedDict[Hashable, Any] = OrderedDict()
_sizes: dict[Hashable, int] = {}
_lock = threading.Lock()


def memoized(build: F) -> F:
    """Remembers what a pure function of hashable arguments returned.

    Built outside `inference_mode`, so that a training step may use what an inference step
    built. Nothing is remembered while torch.compile or torch.export traces (the operations
    become part of the graph) or when the result is a fake tensor.
    """

    @functools.wraps(build)
    def wrapper(*args: Hashable) -> Any:
        if is_transformed():
            return build(*args)
        key = (build, *args)
        with _lock:
            if key in _entries:
                _entries.move_to_end(key)
                return _entries[key]
        with torch.inference_mode(False), torch.no_grad():
            value = build(*args)
        if _is_real(value):
            _store(key, value)
        return value

    return wrapper  # type: ignore[return-value]


def is_transformed(*tensors: torch.Tensor) -> bool:
    """Whether something looks at operations instead of results: nothing may be remembered.

    Compiling, exporting, tracing, functorch transforms, forward-mode gradients, dispatch modes
    (fake tensors) and tensor subclasses.
    """
    return (
        torch.compiler.is_compiling()
        or is_tracing()
        or is_function_transformed()
        or has_forward_gradients()
        or has_dispatch_mode()
        or any(type(tensor) not in (torch.Tensor, torch.nn.Parameter) for tensor in tensors)
    )


def clear_cache() -> None:
    """Frees all memory that posenc keeps to be faster: nothing is lost but time.

    Two kinds of tensors are remembered. Those that follow from a layout alone (indices of pairs,
    tables of sines, weights of resampling) are shared by all models of that layout and outlive
    them, at most `posenc.memo.LIMIT_BYTES` (512 MiB) in all, the least recently used go first.
    Finished biases of static encodings in eval on the CPU, at most `Memo.LIMIT_BYTES` (256 MiB)
    in all, live no longer than their encoding, and go at `model.train()` too. Models that are in
    use build again what they need.
    """
    with _lock:
        _entries.clear()
        _sizes.clear()
        for memo in list(_memos):
            memo.forget()


def _tensors(value: Any) -> tuple[torch.Tensor, ...]:
    """Those that a remembered value holds: a tensor, some, or an index of buckets."""
    value = getattr(value, "buckets", value)
    return value if isinstance(value, tuple) else (value,)


def _is_real(value: Any) -> bool:
    return all(type(t) is torch.Tensor and t.device.type != "meta" for t in _tensors(value))


def _store(key: Hashable, value: Any) -> None:
    size = sum(tensor.nbytes for tensor in _tensors(value))
    with _lock:
        _entries[key] = value
        _sizes[key] = size
        while sum(_sizes.values()) > LIMIT_BYTES and len(_entries) > 1:
            oldest, _ = _entries.popitem(last=False)
            del _sizes[oldest]


class Memo:
    """What backends derived from terms that cannot change; all memos share one budget.

    ViT-B at 1025 tokens would hold 605 MB of dense biases: beyond `LIMIT_BYTES` for the whole
    process nothing more is kept, and the bias is rebuilt at each call.
    """

    LIMIT_BYTES = 256 * 2**20
    held_bytes = 0

    def __init__(self) -> None:
        self._values: dict[Hashable, torch.Tensor] = {}
        self.fits: Hashable = None  # what the term's shapes were last found to fit
        self._held = [0]  # bytes; a list of its own, which the finalizer reads when self is gone
        weakref.finalize(self, Memo._release, self._held)
        with _lock:
            _memos.add(self)

    def get(self, key: Hashable) -> torch.Tensor | None:
        """The remembered tensor, or None."""
        return self._values.get(key)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is remembered."""
        return not self._values

    def may_hold(self, size: int) -> bool:
        """Whether it holds something already, or has room for so many bytes."""
        return not self.is_empty or Memo.held_bytes + size <= Memo.LIMIT_BYTES

    def keep(self, key: Hashable, value: torch.Tensor) -> None:
        """Remembers `value` if the budget allows."""
        with _lock:
            if Memo.held_bytes + value.nbytes > Memo.LIMIT_BYTES:
                return
            Memo.held_bytes += value.nbytes
            self._held[0] += value.nbytes
            self._values[key] = value

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles hold nothing."""
        return Memo, ()

    def forget(self) -> None:
        """Holds nothing any more; called under the lock."""
        self._values.clear()
        Memo._release(self._held)

    @staticmethod
    def _release(held: list[int]) -> None:
        # No lock: the garbage collector may run this while the lock is held.
        Memo.held_bytes -= held[0]
        held[0] = 0


_memos: weakref.WeakSet[Memo] = weakref.WeakSet()
