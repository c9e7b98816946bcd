"""The layout of a model's tokens at run time, learned without any token count."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from posenc.layout import TokenLayout
from posenc.memo import is_transformed

NO_BACKWARD = -1  # what torch calls the backward pass of a thread that is in none


class LayoutSource(ABC):
    """Tells a site the layout of the tokens that it is about to see."""

    @abstractmethod
    def at_rest(self) -> TokenLayout:
        """The layout that sizes new parameters."""

    def current(self, tokens: int) -> TokenLayout:
        """The layout of the tokens of this call, of which there are `tokens`."""
        return self.at_rest()

    def now(self) -> TokenLayout:
        """The layout of the last call, or else the one at rest."""
        return self.at_rest()


class GivenLayout(LayoutSource):
    """The layout that the user passed."""

    def __init__(self, layout: TokenLayout) -> None:
        self.layout = layout

    def at_rest(self) -> TokenLayout:
        """Always the same, until `set_layout`."""
        return self.layout


class EmbeddingLayout(LayoutSource):
    """The grid of a patch embedding that takes one image size, read at each call.

    So timm's `set_input_size` on a patched model is followed, and another embedding too.
    """

    def __init__(self, backbone: nn.Module) -> None:
        self.backbone: Any = backbone
        self._last = TokenLayout(1, 1)

    def at_rest(self) -> TokenLayout:
        """The grid of the embedding, after the prefix tokens."""
        height, width = self.backbone.patch_embed.grid_size
        prefix = self.backbone.num_prefix_tokens
        last = self._last
        if (last.height, last.width, last.prefix) == (height, width, prefix):
            return last  # each block asks: building it anew takes longer
        self._last = TokenLayout(height, width, prefix)
        return self._last


class WindowLayout(LayoutSource):
    """A window without prefix tokens, read from an attribute of a module at each call."""

    def __init__(self, module: nn.Module, attribute: str = "window_size") -> None:
        self.module = module
        self.attribute = attribute

    def at_rest(self) -> TokenLayout:
        """The window now."""
        size = getattr(self.module, self.attribute)
        height, width = (size, size) if isinstance(size, int) else size
        return TokenLayout(height, width)


class StageLayout(LayoutSource):
    """What a function reads from the backbone for the module of this name."""

    def __init__(
        self, backbone: nn.Module, name: str, read: Callable[[Any, str], TokenLayout]
    ) -> None:
        self.backbone = backbone
        self.name = name
        self.read = read

    def at_rest(self) -> TokenLayout:
        """The layout of the stage now."""
        return self.read(self.backbone, self.name)


class MapLayout(LayoutSource):
    """The sides of the map that an attention module received last in this thread.

    Args:
        rest: what sizes new parameters.
    """

    def __init__(self, rest: LayoutSource) -> None:
        self.rest = rest
        self._last = _LastLayout()

    def at_rest(self) -> TokenLayout:
        """As the model states it."""
        return self.rest.at_rest()

    def see(self, height: int, width: int) -> None:
        """The module has received a map of these sides."""
        self._last.set(TokenLayout(height, width))

    def current(self, tokens: int) -> TokenLayout:
        """The layout of the map."""
        return self.now()

    def now(self) -> TokenLayout:
        """The layout of the last map."""
        return self._last.get() or self.at_rest()

    def __getstate__(self) -> dict[str, Any]:
        """What pickle and deepcopy see: no maps."""
        return {"rest": self.rest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A fresh source of the same layout at rest."""
        self.rest = state["rest"]
        self._last = _LastLayout()


class SeenLayout(LayoutSource):
    """The grid of the image that the embedding saw last in this thread.

    For models that take images of changing size. Activation checkpointing replays a block
    during backward, when other images may have been seen since: each block therefore binds its
    layout to the storage of its input, which is the same in the replay.

    Args:
        rest: the layout that sizes new parameters.
        backbone: whose blocks see the tokens.
        embedding: name of the patch embedding in it.
    """

    def __init__(self, rest: TokenLayout, backbone: nn.Module, embedding: str) -> None:
        self.rest = rest
        self.backbone = backbone
        self.embedding = embedding
        self._forget()

    def at_rest(self) -> TokenLayout:
        """The layout that the model was patched with."""
        return self.rest

    def see(self, height: int, width: int) -> None:
        """The embedding has seen an image of this grid."""
        self._set(TokenLayout(height, width, self.rest.prefix), by_embedding=True)

    def current(self, tokens: int) -> TokenLayout:
        """The layout that was seen; in a replay, the one of the replayed block."""
        layout = self._last.get()
        if not torch.compiler.is_compiling() and self._last.task() != _backward_task():
            return self._only_one_with(tokens)
        if layout is None:
            raise RuntimeError(
                "posenc: no image has been seen in this thread, so the layout of its tokens is "
                "not known: run the patch embedding first, or call posenc.set_layout(model, layout)"
            )
        return layout

    def now(self) -> TokenLayout:
        """What this thread saw last."""
        return self._last.get() or self.rest

    def bind(self, tokens: Tensor) -> None:
        """A block is about to run on these tokens: in forward, or again in a replay."""
        self._check_embedding()
        if is_transformed(tokens) or tokens.is_inference():
            return
        storage = tokens.untyped_storage()
        if _backward_task() != NO_BACKWARD:
            self._find_replayed(_key(tokens), tokens.shape[1:-1].numel())
        layout = self._last.get()
        if layout is not None:
            self._note_seen(layout)
            self._remember(_key(tokens), storage, layout)

    def _check_embedding(self) -> None:
        embedding = getattr(self.backbone, self.embedding)
        if "_posenc" in vars(embedding):
            return
        if not any("_posenc" in vars(module) for module in embedding.modules()):  # wrapped
            raise RuntimeError(
                f"posenc: {self.embedding} has been replaced since the patch, and the new one does "
                "not tell what it saw: replace it first, then patch"
            )

    def _find_replayed(self, key: tuple[Any, ...], tokens: int) -> None:
        bound = self._bound.get(key)
        whole_model = self._by_embedding.value and self._last.task() == _backward_task()
        if bound is not None and not bound[0].expired():
            self._set(bound[1], by_embedding=False)
        elif not whole_model:  # its input was moved, such as by offloading
            self._set(self._only_one_with(tokens), by_embedding=False)

    def _remember(self, key: tuple[Any, ...], storage: Any, layout: TokenLayout) -> None:
        if len(self._bound) > 4096:
            # A copy: other threads may add meanwhile.
            for old, (reference, _) in list(self._bound.items()):
                if reference.expired():
                    self._bound.pop(old, None)
        self._bound[key] = (StorageWeakRef(storage), layout)

    def _set(self, layout: TokenLayout, by_embedding: bool) -> None:
        self._last.set(layout)
        if not torch.compiler.is_compiling():
            self._by_embedding.value = by_embedding
            self._note_seen(layout)

    def _note_seen(self, layout: TokenLayout) -> None:
        self._seen.setdefault(layout.num_tokens, set()).add(layout)

    def _only_one_with(self, tokens: int) -> TokenLayout:
        candidates = self._seen.get(tokens, set())
        if len(candidates) != 1:
            names = ", ".join(sorted(map(str, candidates))) or "none"
            raise RuntimeError(
                f"posenc: activation checkpointing replays a module on {tokens} tokens, which "
                f"does not tell its layout (seen with that count: {names}): checkpoint whole "
                "blocks (model.set_grad_checkpointing()), without offloading their inputs"
            )
        return next(iter(candidates))

    def _forget(self) -> None:
        self._last = _LastLayout()
        self._by_embedding = _ThreadFlag()
        self._seen: dict[int, set[TokenLayout]] = {}
        self._bound: dict[tuple[Any, ...], tuple[StorageWeakRef, TokenLayout]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """What pickle and deepcopy see: no images."""
        return {"rest": self.rest, "backbone": self.backbone, "embedding": self.embedding}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A fresh source of the same layout at rest."""
        self.__dict__.update(state)
        self._forget()


class _LastLayout:
    """The layout that this thread, or compiled code, saw last, and in which backward pass."""

    def __init__(self) -> None:
        self._thread = _ThreadState()
        self._compiled: TokenLayout | None = None

    def set(self, layout: TokenLayout) -> None:
        if torch.compiler.is_compiling():
            # Compiled code can write plain attributes, but not those of a thread.
            self._compiled = layout
            return
        self._compiled = None
        self._thread.layout = layout
        self._thread.task = _backward_task()

    def get(self) -> TokenLayout | None:
        return self._thread.layout if self._compiled is None else self._compiled

    def task(self) -> int:
        """Compiled embeddings run in forward."""
        return self._thread.task if self._compiled is None else NO_BACKWARD


class _ThreadState(threading.local):
    layout: TokenLayout | None = None
    task = NO_BACKWARD


class _ThreadFlag(threading.local):
    value = False


def _key(tokens: Tensor) -> tuple[Any, ...]:
    """Where a tensor lies in memory; chunks of one tensor share its storage."""
    storage: Any = tokens.untyped_storage()
    return storage._cdata, tokens.storage_offset(), tuple(tokens.shape)


def _backward_task() -> int:
    """Which backward pass this thread is in."""
    return torch._C._current_graph_task_id()
