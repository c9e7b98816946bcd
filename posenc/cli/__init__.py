"""The command `posenc`, also `python -m posenc`: what there is, what fits a model, what it sees.

Exit codes: 0; 1 for a model, an encoding or a file that posenc refuses, and where `doctor` finds
something broken; 2 for wrong arguments and unknown names. Messages go to stderr, one line each.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import posenc
from posenc.cli import bench, checkup, explore, inspection, listing, look
from posenc.cli.errors import Parser, UsageError, one_line

EPILOG = (
    "Exit codes: 0; 1 for what posenc refuses, or doctor finds broken; 2 for wrong arguments and "
    "unknown names."
)
CLOSED_PIPE = 141  # what a shell says of a command that SIGPIPE ended


def run() -> None:
    """The console script: silent where nobody reads on, as in `posenc list | head`."""
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes at its end
        code = CLOSED_PIPE
    sys.exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with these arguments, default those of the process.

    Returns:
        The exit code.
    """
    given = sys.argv[1:] if argv is None else list(argv)
    arguments = parser().parse_args(given)
    arguments.given = given[1:]
    try:
        return int(arguments.command(arguments))
    except ValueError as error:
        print(f"posenc: {one_line(error)}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


def parser() -> argparse.ArgumentParser:
    """Of the command with all that it can do."""
    command = Parser("posenc", description=posenc.__doc__, epilog=EPILOG)
    command.add_argument("--version", action="version", version=f"posenc {posenc.__version__}")
    commands = command.add_subparsers(required=True, metavar="COMMAND")
    for module in (listing, inspection, look, explore, bench, checkup):
        name, text = module.NAME, module.HELP
        one = commands.add_parser(
            name, help=text, description=text, epilog=EPILOG, allow_abbrev=False
        )
        module.add_arguments(one)
        one.set_defaults(command=module.main)
    return command
