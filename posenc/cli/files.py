"""Files of the command: those that it reads, and what it writes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import torch

from posenc.cli.errors import UsageError, one_line


def check_readable(path: Path) -> None:
    """Raises unless the path is that of a file that can be read."""
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None


def check_writable(path: Path) -> None:
    """Raises unless a file can be written there; nothing is."""
    with replacing(path, keep=False):
        pass


def check_device(device: str | torch.device) -> None:
    """Raises unless tensors, with their numbers, can be there."""
    try:
        torch.zeros(1, device=device).tolist()
    except Exception as error:  # of many kinds
        reason = one_line(str(error).partition("\n")[0])
        raise UsageError(f"--device {device}: {reason}") from None


@contextlib.contextmanager
def replacing(path: Path, *, keep: bool = True) -> Iterator[IO[bytes]]:
    """A file beside the path that takes its place at the end; after an exception nothing is left.

    Args:
        path: of the file.
        keep: else nothing is left in any case.

    Raises:
        UsageError: nothing can be written there, which is known before anything is computed.
    """
    if path.is_dir():
        raise UsageError(f"cannot write {path}: it is a folder")
    if path.exists() and not os.access(path, os.W_OK):
        raise UsageError(f"cannot write {path}: the file there is read-only")
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        file = unfinished.open("xb")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None
    try:
        with file:
            yield file
        if keep:
            unfinished.replace(path)
        else:
            unfinished.unlink()
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
