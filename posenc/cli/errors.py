"""What goes wrong, in one line."""

from __future__ import annotations

LONGEST = 500  # of a message; PyTorch can list every key of a model


class UsageError(ValueError):
    """Wrong arguments, in words."""


def one_line(error: Exception | str) -> str:
    """The words of an error, or its name where it has none."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
