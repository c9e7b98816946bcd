"""`posenc doctor`: what this machine has, and whether it is right."""

from __future__ import annotations

import argparse
import warnings

from posenc.doctor import examine

NAME = "doctor"
HELP = "versions and devices, and whether attention is right on each"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """There are none."""


def main(arguments: argparse.Namespace) -> int:
    """Prints a line a finding; 1 where something is broken."""
    is_broken = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the findings say it
        for finding in examine():
            print(f"{finding.state:<8}{finding.text}", flush=True)
            is_broken |= finding.state == "broken"
    return int(is_broken)
