"""`posenc inspect`: an encoding with its options, or what can be patched in a model."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
from typing import Any

import torch
from torch import nn

import posenc
from posenc.cli import models
from posenc.cli.errors import UsageError
from posenc.cli.listing import acts, describe
from posenc.registry import encoding_class, resolved_options

NAME = "inspect"
HELP = "an encoding with its options, or what can be patched in a timm model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of a model, and how to print."""
    parser.add_argument("name", help="of an encoding, or of a timm model")
    parser.add_argument("--encoding", help="patches the model with it, with random weights")
    models.add_size(parser)
    parser.add_argument("--json", action="store_true", help="for programs")


def main(arguments: argparse.Namespace) -> int:
    """Prints it; 1 for a model that cannot be patched."""
    if arguments.name not in posenc.list_encodings():
        return _model(arguments)
    if arguments.encoding or arguments.img_size:
        raise UsageError(
            f"{arguments.name} is an encoding; --encoding and --img-size are for models"
        )
    _encoding(arguments.name, arguments.json)
    return 0


def _encoding(name: str, as_json: bool) -> None:
    cls = encoding_class(name)
    options = resolved_options(cls, {})
    if as_json:
        _print_json({**dataclasses.asdict(describe(name)), "options": options})
        return
    print(f"{name}: posenc.{cls.__name__}, acts {acts(cls)}\n\n{inspect.getdoc(cls)}\n")
    print("Options:")
    for option, default in options.items():
        print(f"  {option} = {default!r}")


def _model(arguments: argparse.Namespace) -> int:
    name, encoding = arguments.name, arguments.encoding
    models.check_encodings(encoding)
    # On the meta device models of any size are there in no time; a backend is chosen for the CPU.
    with torch.device("meta" if encoding is None else "cpu"):
        model = models.create(name, arguments.img_size)
    support = posenc.supports(model)
    report: dict[str, Any] = {"model": name, **dataclasses.asdict(support)}
    if not arguments.json:
        print(support)
    if encoding is not None:
        report |= _patched(model, arguments)
    if arguments.json:
        _print_json(report)
    return 0 if support else 1


def _patched(model: nn.Module, arguments: argparse.Namespace) -> dict[str, Any]:
    """What the patch gives and, where it is inside attention, the backend of each site and why."""
    models.patch(model, arguments.encoding)
    summary = posenc.summary(model)
    height, width = models.input_size(model, arguments.img_size)
    explained = None
    if summary.layouts:  # something acts inside attention
        explained = posenc.explain(model, torch.zeros(1, 3, height, width))
    if not arguments.json:
        print(f"\n{summary}")
        if explained is not None:
            print(f"\n{explained}")
    report = {"patched": dataclasses.asdict(summary)}
    if explained is not None:
        report["backends"] = {
            mode: {site: {"choice": each.choice, "why": each.why} for site, each in sites.items()}
            for mode, sites in vars(explained).items()
        }
    return report


def _print_json(report: dict[str, Any]) -> None:
    print(json.dumps(report, indent=2, default=str))
