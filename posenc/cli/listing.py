"""`posenc list`: the registered encodings."""

from __future__ import annotations

import argparse
import inspect
from dataclasses import dataclass
from typing import Any

import posenc
from posenc.encodings.base import PLACEMENTS, Encoding, TokenEncoding
from posenc.registry import SIZES, encoding_class, needed_sizes

NAME = "list"
HELP = "the registered encodings, one a line"
STARTS = {True: "with an effect", False: "without effect", None: "effect unknown"}


@dataclass(frozen=True)
class Description:
    """What lists of encodings say of one: here, and in the table of the README."""

    name: str
    acts: str
    summary: str
    starts: str
    paper: tuple[str, str] | None


def describe(name: str) -> Description:
    """Of a registered encoding: what its class says, and how one with default options starts."""
    cls = encoding_class(name)
    summary = (inspect.getdoc(cls) or "").partition("\n")[0]
    return Description(name, acts(cls), summary, STARTS[_changes_at_start(cls)], cls.paper)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """There are none."""


def main(arguments: argparse.Namespace) -> int:
    """Prints a row an encoding."""
    rows = [_row(describe(name)) for name in posenc.list_encodings()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join(cells).rstrip())
    return 0


def acts(cls: type[Encoding]) -> str:
    """Where, in words."""
    return PLACEMENTS[cls.placement] if issubclass(cls, TokenEncoding) else "inside attention"


def _row(encoding: Description) -> tuple[str, ...]:
    paper = "no paper" if encoding.paper is None else encoding.paper[0]
    return encoding.name, encoding.acts, f"starts {encoding.starts}", paper, encoding.summary


def _changes_at_start(cls: type[Encoding]) -> bool | None:
    """With its default options; what the sizes are does not matter."""
    sizes: dict[str, int | None] = dict(zip(SIZES, (2, 4, 8, 0, 1), strict=True))
    build: Any = cls
    encoding: Encoding = build(posenc.TokenLayout(2, 3, 1), **needed_sizes(cls, sizes, ""))
    return encoding.changes_at_start()
