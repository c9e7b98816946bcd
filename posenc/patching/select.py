"""Which attention modules `blocks=` selects."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from posenc.patching.models.examine import (
    AttentionSite,
    Backbone,
)
from posenc.patching.models.kinds import UnsupportedModelError

Blocks = Sequence[int] | slice | int | Callable[[str], bool] | None


def select(backbone: Backbone, blocks: Blocks) -> list[AttentionSite]:
    """Attention sites chosen by `blocks`, none of them refused."""
    if not callable(blocks):
        backbone.check_one_place()
    names = attention_names(backbone)
    if not names:
        reasons = "; ".join(f"{n}: {reason}" for n, reason in backbone.left_alone.items())
        raise UnsupportedModelError(
            f"found no attention in the blocks of {type(backbone.module).__name__} that can be "
            f"patched ({reasons or 'none that posenc knows'})"
        )
    chosen = choose(names, blocks)
    if not chosen:
        raise ValueError(
            f"blocks={blocks!r} selects none of the {len(names)} attention modules: "
            f"{names[0]} ... {names[-1]}"
        )
    for name in chosen:
        if name in backbone.refused:
            raise UnsupportedModelError(
                f"{name} cannot be patched: {backbone.refused[name]}. Leave it out with blocks="
            )
    return [site for site in backbone.attention if site.name in chosen]


def attention_names(backbone: Backbone) -> list[str]:
    """What `blocks=` counts: names of attention modules, in the order of the model."""
    order = {name: index for index, (name, _) in enumerate(backbone.module.named_modules())}
    return sorted([*(s.name for s in backbone.attention), *backbone.refused], key=order.__getitem__)


def choose(names: list[str], blocks: Blocks) -> list[str]:
    """The names that `blocks` selects.

    Raises:
        ValueError: neither None, indices, a slice nor a predicate, or an index out of range.
    """
    if blocks is None:
        return names
    if isinstance(blocks, slice):
        return names[blocks]
    if callable(blocks):
        return [name for name in names if blocks(name)]
    try:
        indices = [_index(i) for i in _collection(blocks)]
    except TypeError:
        raise ValueError(
            f"blocks must be None, indices, a slice or a predicate on the name, got {blocks!r}"
        ) from None
    for index in indices:
        if not -len(names) <= index < len(names):
            raise ValueError(
                f"blocks={blocks!r}: {index!r} is not an index of the model's {len(names)} "
                "attention modules"
            )
    return [names[index] for index in indices]


def _collection(blocks: Any) -> Iterable[Any]:
    is_one = isinstance(blocks, (Mapping, str)) or not isinstance(blocks, Iterable)
    return [blocks] if is_one else blocks


def _index(given: Any) -> int:
    """As Python's own indexing, but for booleans: a mask is no list of indices."""
    if isinstance(given, bool) or getattr(given, "dtype", None) is torch.bool:
        raise TypeError
    return operator.index(given)
