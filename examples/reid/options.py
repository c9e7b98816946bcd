"""What the commands share: their options for data, errors in one line, and the end by Ctrl-C."""

from __future__ import annotations

import argparse
import math
import operator
import sys
from collections.abc import Callable, Collection
from dataclasses import field, fields
from pathlib import Path
from typing import Any, NoReturn

from posenc.cli.errors import one_line

INTERRUPTED = 130  # the exit code after Ctrl-C, as shells have it
REFUSED = 1
BOUNDS = {
    "above": (operator.gt, "greater than"),
    "least": (operator.ge, "at least"),
    "most": (operator.le, "at most"),
    "below": (operator.lt, "less than"),
}


class RefusedError(RuntimeError):
    """What a command cannot do, in words for those who typed it."""


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """With the default of an option, where it has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        has_default = action.default not in (None, "")
        return super()._get_help_string(action) if has_default else action.help


class Parser(argparse.ArgumentParser):
    """Of a command, with usage errors of one line."""

    def __init__(self, doc: str) -> None:
        super().__init__(description=doc.partition("\n")[0], formatter_class=Help)

    def error(self, message: str) -> NoReturn:
        """Prints it and leaves the process with 2."""
        self.exit(2, f"{self.prog}: error: {message} (--help lists the options)\n")


def option(default: Any, text: str, **rules: Any) -> Any:
    """A field of a record: the help of its option, and its `choices` or bounds (`BOUNDS`)."""
    return field(default=default, metadata={"help": text, **rules})


def check_fields(record: Any) -> None:
    """Raises `ValueError` for a number out of its bounds, or a word that is no choice."""
    for one in fields(record):
        _check(one.name, getattr(record, one.name), **one.metadata)


def _check(name: str, value: Any, choices: tuple[str, ...] = (), **rules: Any) -> None:
    if choices and value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    for rule, (holds, words) in BOUNDS.items():
        if rule in rules and not holds(value, rules[rule]):
            raise ValueError(f"{name} must be {words} {rules[rule]}, got {value}")


def add_fields(
    parser: argparse.ArgumentParser, record: type, only: Collection[str] | None = None
) -> None:
    """An option for each field, or only these, of a record whose fields are by `option`."""
    for one in fields(record):
        if only is not None and one.name not in only:
            continue
        kind: dict[str, Any] = {"type": type(one.default)}
        if isinstance(one.default, bool):
            kind = {"action": argparse.BooleanOptionalAction}
        elif "choices" in one.metadata:
            kind["choices"] = one.metadata["choices"]
        name, text = f"--{one.name.replace('_', '-')}", one.metadata["help"]
        parser.add_argument(name, default=one.default, help=text, **kind)


def read_fields(record: Callable[..., Any], args: argparse.Namespace) -> Any:
    """The record that options by `add_fields` ask for, with defaults for those there are not."""
    names = {one.name for one in fields(record)}
    return record(**{name: value for name, value in vars(args).items() if name in names})


def add_data(parser: Parser, name: str = "--data") -> None:
    """The data set: where it is, and how its files are named."""
    from data.market import KINDS

    required = {"required": True} if name.startswith("-") else {}
    parser.add_argument(name, type=Path, help="folder of the data set", **required)
    parser.add_argument(
        "--kind", default="market1501", choices=sorted(KINDS), help="how its files are named"
    )


def add_run(parser: Parser) -> None:
    """The folder of a finished training."""
    parser.add_argument("run", type=Path, help="folder of a finished training, by train.py")


def command(main: Callable[[], None], interrupted: str = "nothing is kept") -> None:
    """Runs the main function of a script.

    What it refuses becomes one line and exit code 1, Ctrl-C a line with what `interrupted` says
    and exit code 130. Anything else is a mistake of the code and keeps its traceback.
    """
    name = Path(sys.argv[0]).name
    try:
        main()
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted; {interrupted}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except (ValueError, OSError, FloatingPointError, RefusedError) as error:
        print(f"{name}: error: {_words(error)}", file=sys.stderr)
        sys.exit(REFUSED)


def _words(error: Exception) -> str:
    """In one line; of an error in a process that loads photos, its own words."""
    text = str(error).strip()
    if "Original Traceback" in text:
        text = text.splitlines()[-1].partition(": ")[2]
    return one_line(text or error)
