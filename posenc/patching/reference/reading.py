"""A state, sorted into tables of encodings by their place and everything else."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor

from posenc.patching.reference.source import Need, Row, Source, State
from posenc.patching.reference.state import listed

_BLOCK = re.compile(r"blocks\.(\d+)\.")


@dataclass(frozen=True)
class Entry:
    """A value of the checkpoint that belongs to an encoding."""

    key: str
    value: Tensor
    row: Row


@dataclass
class Reading:
    """What a checkpoint holds.

    Args:
        needs: encodings that the model must have for it.
        tables: encoding -> place -> parameter -> value, places in order; "" is all places.
        others: what belongs to no encoding.
    """

    needs: tuple[Need, ...]
    tables: dict[str, dict[str, dict[str, Entry]]] = field(default_factory=dict)
    others: State = field(default_factory=dict)

    @property
    def depth(self) -> int:
        """Number of blocks of a plain vision transformer."""
        keys = [*self.others, *(key for places in self.tables.values() for key in places)]
        return depth_of(f"{key}." for key in keys)


def read(source: Source, state: State) -> Reading:
    """Sorts a prepared state.

    Raises:
        ValueError: it has no key that tells a checkpoint of this source.
    """
    found: dict[str, dict[str, dict[str, Entry]]] = {}
    others: State = {}
    for key in sorted(state, key=_by_number):
        for row in source.rows:
            if match := re.fullmatch(row.key, key):
                place = found.setdefault(row.encoding, {}).setdefault(match["site"], {})
                parameter = row.parameter.format(**match.groupdict())
                place[parameter] = Entry(key, state[key], row)
                break
        else:
            others[key] = state[key]
    if source.example is not None and not found:
        raise ValueError(
            f"the checkpoint is none of source={source.name!r}: it has no key such as "
            f"{source.example}, but {listed(list(state), 5)}"
        )
    return Reading(source.needs(state), found, others)


def depth_of(names: Iterable[str]) -> int:
    """Number of blocks that names speak of."""
    found = [int(match[1]) for name in names if (match := _BLOCK.match(name))]
    return max(found, default=-1) + 1


def _by_number(key: str) -> list[tuple[int, str]]:
    """So that block 10 comes after block 9."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in key.split(".")]
