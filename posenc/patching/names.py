"""Names in a state dict that belong to encodings."""

from __future__ import annotations


def is_of_encoding(name: str) -> bool:
    """Whether a name in a backbone is that of a parameter or buffer of an encoding."""
    return ".posenc." in f".{name}"
