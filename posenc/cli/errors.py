"""What goes wrong, in one line."""

from __future__ import annotations

import argparse
from typing import NoReturn

LONGEST = 500  # of a message; PyTorch can list every key of a model


class UsageError(ValueError):
    """Wrong arguments, in words."""


def one_line(error: Exception | str) -> str:
    """The words of an error, or its name where it has none."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


class Parser(argparse.ArgumentParser):
    """With usage errors of one line."""

    def error(self, message: str) -> NoReturn:
        """Prints it and leaves the process with 2."""
        self.exit(2, f"{self.prog}: {message} (`{self.prog} --help` tells more)\n")
