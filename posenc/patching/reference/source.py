"""The words in which a source of checkpoints is described."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

State = dict[str, Tensor]
Grid = tuple[int, int]
# From a table in our layout, its grid and the one that is wanted.
Resize = Callable[[Tensor, Grid, Grid], Tensor]


def same(value: Tensor, like: Tensor) -> Tensor:
    """The layout is ours already."""
    return value


def transposed(value: Tensor, like: Tensor) -> Tensor:
    """`[entries, heads]` -> `[heads, entries]`."""
    return value.mT if value.dim() == 2 else value


def reshaped(value: Tensor, like: Tensor) -> Tensor:
    """The same numbers with as many axes as the parameter; equal axes must be of equal sizes."""
    fits = value.dim() != like.dim() and value.numel() == like.numel()
    return value.reshape(like.shape) if fits else value


@dataclass(frozen=True)
class Row:
    """Keys of a checkpoint that hold a parameter of an encoding.

    Args:
        key: a regular expression of the whole key; its group `site` tells places apart.
        encoding: name of the encoding.
        parameter: its name in the encoding, with groups of the expression in braces.
        change: from the checkpoint's layout to that of the parameter (the second argument).
        by_offset: whether it is a relative table, whose size follows from the grid.
        resize: the source's rule for other grids, None where there is none.
    """

    key: str
    encoding: str
    parameter: str
    change: Callable[[Tensor, Tensor], Tensor] = same
    by_offset: bool = False
    resize: Resize | None = None


@dataclass(frozen=True)
class Need:
    """An encoding that the model must have.

    Args:
        encoding: its name.
        options: name of an option -> the values with which it can take the checkpoint.
        shown: options that no key tells, as published, for the message.
    """

    encoding: str
    options: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    shown: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """A published code and its checkpoints.

    Args:
        name: for `source=`.
        needs: of a state, which encodings it has parameters for.
        rows: where these are.
        example: a key that such a checkpoint has; None where encodings have no parameters.
        layers: whether the other keys are layers of a plain vision transformer, and are loaded.
        renames: of layers, (expression, replacement), where the model has no layer of that name.
        left_out: expressions of keys that are not loaded.
        constants: (encoding, parameter) -> value of a parameter that the source does not have.
        prepare: a state before it is read, given the names in the model.
        advice: where an encoding's parameter has another size.
    """

    name: str
    needs: Callable[[State], tuple[Need, ...]]
    rows: tuple[Row, ...]
    example: str | None
    layers: bool = False
    renames: tuple[tuple[str, str], ...] = ()
    left_out: tuple[str, ...] = ()
    constants: Mapping[tuple[str, str], float] = field(default_factory=dict)
    prepare: Callable[[State, frozenset[str]], State] = lambda state, names: state
    advice: str = ""


def always(*needs: Need) -> Callable[[State], tuple[Need, ...]]:
    """Needs that do not depend on the state."""
    return lambda state: needs


_WHOLE = ".qkv.bias"
# What is a buffer in some versions of a code, computed from sizes.
INDICES = r"(.*\.)?(relative_position_index|relative_coords_table|attn_mask|rel_indices)"


def renamed(pairs: Iterable[tuple[str, Tensor]]) -> State:
    """A state of these names.

    Raises:
        ValueError: two of them are the same.
    """
    state: State = {}
    for key, value in pairs:
        if key in state:
            raise ValueError(f"the checkpoint has {key} twice, under two names: leave one out")
        state[key] = value
    return state


def without_k(state: State, names: frozenset[str]) -> State:
    """Biases of queries and values, without one of keys, as the model has them."""
    sites = [name.removesuffix(_WHOLE) for name in names if name.endswith(_WHOLE)]
    halves = [(site, f"{site}.q_bias", f"{site}.v_bias") for site in sites]
    both = [(site, q, v) for site, q, v in halves if _are_vectors(state.get(q), state.get(v))]
    taken = {key for _, *keys in both for key in keys}
    rest = [(key, value) for key, value in state.items() if key not in taken]
    joined = [
        (f"{site}{_WHOLE}", torch.cat([state[q], torch.zeros_like(state[q]), state[v]]))
        for site, q, v in both
    ]
    return renamed([*rest, *joined])


def _are_vectors(*values: Tensor | None) -> bool:
    return all(value is not None and value.dim() == 1 for value in values)
