"""What is known of a module, by its class."""

from __future__ import annotations

import functools
import importlib
from typing import Any

from torch import nn

from posenc.patching.models.kinds import AttentionKind, Family, ImageEmbedding, MlpKind
from posenc.patching.models.others import ADAPTED, EMBEDDINGS, LEFT_ALONE
from posenc.patching.models.registered import registered_attention
from posenc.patching.models.timm import ATTENTIONS, FAMILIES, MLPS, REFUSED


def family_of(module: nn.Module) -> Family | None:
    """The family of a backbone, None when it is none."""
    return _first(type(module), _by_class({family.path: family for family in FAMILIES}))


def attention_of(module: nn.Module) -> AttentionKind | None:
    """What is known of an attention module in a model of timm, None when nothing is."""
    return _attention(type(module), {kind.path: kind for kind in ATTENTIONS})


def adapted_of(module: nn.Module) -> AttentionKind | None:
    """What is known of an attention module in any other model, None when nothing is."""
    return _attention(type(module), {kind.path: kind for kind in (*ATTENTIONS, *ADAPTED)})


def _attention(cls: type, known: dict[str, AttentionKind]) -> AttentionKind | None:
    for base in cls.__mro__:
        if (kind := registered_attention(base) or known.get(_path(base))) is not None:
            return kind
    return None


def embedding_of(module: nn.Module) -> ImageEmbedding | None:
    """What is known of an embedding of images outside timm, None when nothing is."""
    known = {kind.path: kind for kind in EMBEDDINGS}
    paths = map(_path, type(module).__mro__)
    return next((known[path] for path in paths if path in known), None)


def mlp_of(module: Any) -> MlpKind | None:
    """What is known of an MLP, None when nothing is: another forward may have no such place."""
    forward = type(module).forward
    path = f"{forward.__module__}:{forward.__qualname__}"
    return next((kind for kind in MLPS if f"{kind.path}.forward" == path), None)


def left_alone_in(module: nn.Module) -> str | None:
    """Why the attention in a module is left alone, None when it is not."""
    paths = map(_path, type(module).__mro__)
    return next((LEFT_ALONE[path] for path in paths if path in LEFT_ALONE), None)


def _path(cls: type) -> str:
    """As rows of data name a class: nothing is imported, its package may be absent."""
    return f"{cls.__module__}:{cls.__qualname__}"


def refusal_of(module: nn.Module) -> str | None:
    """Why a known model is not supported, None when it is not known."""
    reason: str | None = _first(type(module), _by_class(REFUSED))
    return reason


def known_families() -> str:
    """Names of the model classes, for messages."""
    return ", ".join(family.path.rpartition(":")[2] for family in FAMILIES)


def _first(cls: type, known: dict[type, Any]) -> Any:
    return next((known[base] for base in cls.__mro__ if base in known), None)


def _by_class(entries: dict[str, Any]) -> dict[type, Any]:
    found = {path: _class(path) for path in entries}
    return {cls: entries[path] for path, cls in found.items() if cls is not None}


@functools.cache
def _class(path: str) -> type | None:
    module, _, name = path.partition(":")
    try:
        found: type = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return None  # a model that this timm does not have
    return found
