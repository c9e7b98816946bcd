"""`posenc bench`: what encodings cost on this machine."""

from __future__ import annotations

import argparse
import importlib.util

from posenc.bench import attention
from posenc.cli import files
from posenc.cli.errors import UsageError

NAME = "bench"
HELP = "attention with encodings, as a ratio to plain attention of the same shape"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of the benchmark."""
    attention.add_arguments(parser)


def main(arguments: argparse.Namespace) -> int:
    """Prints a table in Markdown."""
    if arguments.plot and importlib.util.find_spec("matplotlib") is None:
        raise ValueError('bench --plot draws with matplotlib: pip install "posenc[cli]"')
    files.check_device(arguments.device)
    for path in filter(None, (arguments.json, arguments.plot)):
        files.check_writable(path)
    try:
        attention.complete(arguments)
    except FileNotFoundError as error:
        raise UsageError(str(error)) from None
    attention.report_on(arguments, ["posenc", NAME, *arguments.given])
    return 0
