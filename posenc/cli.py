"""The command `posenc`, also `python -m posenc`: what there is, and what fits a model.

Exit codes: 0; 1 for a model or encoding that posenc refuses, and where `doctor` finds something
broken; 2 for wrong arguments and unknown names. Messages go to stderr.
"""

from __future__ import annotations

import argparse
import inspect
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import posenc
from posenc.doctor import examine
from posenc.encodings.base import PLACEMENTS, Encoding, TokenEncoding
from posenc.registry import SIZES, did_you_mean, encoding_class, needed_sizes, resolved_options

EPILOG = (
    "Exit codes: 0; 1 for what posenc refuses, or doctor finds broken; 2 for wrong arguments and "
    "unknown names."
)
STARTS = {True: "with an effect", False: "without effect", None: "effect unknown"}


class UsageError(ValueError):
    """Wrong arguments, in words."""


def run() -> None:
    """The console script."""
    sys.exit(main())


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with these arguments, default those of the process.

    Returns:
        The exit code.
    """
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.command(arguments))
    except ValueError as error:
        print(f"posenc: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("posenc", description=posenc.__doc__, epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"posenc {posenc.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="the registered encodings, one a line")
    listing.set_defaults(command=_list)
    doctor = commands.add_parser(
        "doctor", help="versions and devices, and whether attention is right on each"
    )
    doctor.set_defaults(command=_doctor)
    inspecting = commands.add_parser(
        "inspect",
        help="an encoding with its options, or what can be patched in a timm model",
        epilog=EPILOG,
    )
    inspecting.set_defaults(command=_inspect)
    inspecting.add_argument("name", help="of an encoding, or of a timm model")
    inspecting.add_argument("--encoding", help="patches the model with it, with random weights")
    inspecting.add_argument(
        "--img-size",
        nargs=2,
        type=int,
        metavar=("H", "W"),
        help="size of the images in pixels, default that of the model",
    )
    return parser


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
    return Description(name, _acts(cls), summary, STARTS[_changes_at_start(cls)], cls.paper)


def _list(arguments: argparse.Namespace) -> int:
    rows = [_row(describe(name)) for name in posenc.list_encodings()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join(cells).rstrip())
    return 0


def _row(encoding: Description) -> tuple[str, ...]:
    paper = "no paper" if encoding.paper is None else encoding.paper[0]
    return encoding.name, encoding.acts, f"starts {encoding.starts}", paper, encoding.summary


def _acts(cls: type[Encoding]) -> str:
    return PLACEMENTS[cls.placement] if issubclass(cls, TokenEncoding) else "inside attention"


def _changes_at_start(cls: type[Encoding]) -> bool | None:
    """With its default options; what the sizes are does not matter."""
    sizes: dict[str, int | None] = dict(zip(SIZES, (2, 4, 8, 0, 1), strict=True))
    build: Any = cls
    encoding: Encoding = build(posenc.TokenLayout(2, 3, 1), **needed_sizes(cls, sizes, ""))
    return encoding.changes_at_start()


def _doctor(arguments: argparse.Namespace) -> int:
    is_broken = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the findings say it
        for finding in examine():
            print(f"{finding.state:<8}{finding.text}", flush=True)
            is_broken |= finding.state == "broken"
    return int(is_broken)


def _inspect(arguments: argparse.Namespace) -> int:
    if arguments.name not in posenc.list_encodings():
        return _inspect_model(arguments.name, arguments.encoding, arguments.img_size)
    if arguments.encoding or arguments.img_size:
        raise UsageError(
            f"{arguments.name} is an encoding; --encoding and --img-size are for models"
        )
    return _inspect_encoding(arguments.name)


def _inspect_encoding(name: str) -> int:
    cls = encoding_class(name)
    print(f"{name}: posenc.{cls.__name__}, acts {_acts(cls)}\n\n{inspect.getdoc(cls)}\n")
    print("Options:")
    for option, default in resolved_options(cls, {}).items():
        print(f"  {option} = {default!r}")
    return 0


def _inspect_model(name: str, encoding: str | None, img_size: list[int] | None) -> int:
    for part in [] if encoding is None else encoding.split("+"):
        _check_encoding(part.strip())
    # On the meta device models of any size are there in no time; a backend is chosen for the CPU.
    with torch.device("meta" if encoding is None else "cpu"):
        model = _create(name, img_size)
    support = posenc.supports(model)
    print(support)
    if encoding is None:
        return 0 if support else 1
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        posenc.patch_model(model, encoding)
    print(f"\n{posenc.summary(model)}")
    for warning in caught:
        print(warning.message, file=sys.stderr)
    return 0


def _check_encoding(name: str) -> None:
    try:
        encoding_class(name)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _create(name: str, img_size: list[int] | None) -> nn.Module:
    import timm

    if not timm.is_model(name):
        near = (timm.list_models(f"{name}*") or timm.list_models(f"*{name}*"))[:3]
        raise UsageError(
            f"{name!r} is no encoding and no timm model.{did_you_mean(near)} "
            "`posenc list` has the encodings, timm.list_models() the models"
        )
    options = {} if img_size is None else {"img_size": tuple(img_size)}
    try:
        model: nn.Module = timm.create_model(name, **options)
    except Exception as error:
        if img_size is None:
            raise
        raise UsageError(f"{name} cannot have images of {img_size}: {error}") from error
    return model.eval()
