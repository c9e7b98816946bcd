"""Which layout a block had, when activation checkpointing runs it again inside backward.

A replay calls the block without its embedding, and other images may have been seen since. What
does not change is the memory of the block's input, which checkpointing keeps: the layout is found
by it. A replay of something smaller than a block, or of moved inputs, finds nothing there; then the
token count must have had one layout only, or the replay is refused.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from posenc._torch import NO_BACKWARD, backward_task, storage_address
from posenc.layout import TokenLayout

LIMIT = 4096  # inputs that are remembered before those that are gone are dropped


class Replays:
    """The layouts of block inputs, by their place in memory, and all layouts by token count."""

    def __init__(self) -> None:
        self._seen: dict[int, set[TokenLayout]] = {}
        self._bound: dict[tuple[Any, ...], tuple[StorageWeakRef, TokenLayout]] = {}

    def note(self, layout: TokenLayout) -> None:
        """Tokens of this layout have been seen."""
        self._seen.setdefault(layout.num_tokens, set()).add(layout)

    def bind(self, tokens: Tensor, layout: TokenLayout) -> None:
        """These tokens have this layout, for as long as their memory lives."""
        self.note(layout)
        if len(self._bound) > LIMIT:
            # A copy: other threads may add meanwhile.
            for old, (reference, _) in list(self._bound.items()):
                if reference.expired():
                    self._bound.pop(old, None)
        self._bound[_place(tokens)] = (StorageWeakRef(tokens.untyped_storage()), layout)

    def find(self, tokens: Tensor) -> TokenLayout | None:
        """The layout that tokens in this memory were bound to."""
        bound = self._bound.get(_place(tokens))
        # An expired reference means that the memory was freed: its address says nothing then.
        return None if bound is None or bound[0].expired() else bound[1]

    def only_one_with(self, tokens: int) -> TokenLayout:
        """The only layout that was seen with this token count.

        Raises:
            RuntimeError: none, or several.
        """
        candidates = self._seen.get(tokens, set())
        if len(candidates) != 1:
            names = ", ".join(sorted(map(str, candidates))) or "none"
            raise RuntimeError(
                f"posenc: activation checkpointing replays a module on {tokens} tokens, which "
                f"does not tell its layout (seen with that count: {names}): checkpoint whole "
                "blocks (model.set_grad_checkpointing()), without offloading their inputs"
            )
        return next(iter(candidates))


class LastLayout:
    """The layout that this thread, or compiled code, saw last, and in which backward pass."""

    def __init__(self) -> None:
        self._thread = _ThreadState()
        self._compiled: TokenLayout | None = None

    def set(self, layout: TokenLayout) -> None:
        """Remembers the layout."""
        if torch.compiler.is_compiling():
            # Compiled code can write plain attributes, but not those of a thread.
            self._compiled = layout
            return
        self._compiled = None
        self._thread.layout = layout
        self._thread.task = backward_task()

    def get(self) -> TokenLayout | None:
        """The layout, None before the first."""
        return self._thread.layout if self._compiled is None else self._compiled

    def task(self) -> int:
        """The backward pass that it was seen in; compiled embeddings run in forward."""
        return self._thread.task if self._compiled is None else NO_BACKWARD


class ThreadFlag(threading.local):
    """A flag of this thread."""

    value = False


class _ThreadState(threading.local):
    layout: TokenLayout | None = None
    task = NO_BACKWARD


def _place(tokens: Tensor) -> tuple[Any, ...]:
    """Where a tensor lies in memory; chunks of one tensor share its storage."""
    return storage_address(tokens), tokens.storage_offset(), tuple(tokens.shape)
