"""Which positions a network has: a table of its own, and the encodings that stand beside it."""

from __future__ import annotations

from typing import Any

from torch import nn


def has_own_table(vit: Any) -> bool:
    """Whether the model adds a table of absolute positions, pretrained or not."""
    return isinstance(getattr(vit, "pos_embed", None), nn.Parameter)


def describe_positions(vit: Any, encoding: str) -> str:
    """In a sentence, so that nobody takes a second table for the only one."""
    if not has_own_table(vit):
        return "positions: none" if encoding == "none" else f"positions: {encoding} alone"
    if encoding == "none":
        return "positions: the model's own table alone"
    second = "; learned is a second table, which starts at zero" if "learned" in encoding else ""
    return f"positions: the model's own table, and beside it {encoding}{second}"
