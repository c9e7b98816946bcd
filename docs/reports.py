"""Reads what benchmarks and experiments left: benchmarks/results/, docs/which/, docs/reid/."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples" / "reid"))  # its tests of differences

if TYPE_CHECKING:
    from findings.results import Results


def load(name: str) -> dict:
    """A report of a benchmark."""
    return json.loads((ROOT / "benchmarks" / "results" / name).read_text())


def ratio(report: str, case: str | None, shape: str, what: str = "median") -> float | None:
    """Time over that of plain attention, or `what` else its row has; None where there is none."""
    rows = load(report)["ratios_to_plain_sdpa"]
    return next((row[what] for row in rows if (row["case"], row["shape"]) == (case, shape)), None)


def model_ratio(report: str, encoding: str) -> float | None:
    """Time of a patched model over the unpatched one; None where it was not measured."""
    row = load(report)["ratios_to_unpatched"].get(encoding)
    return None if row is None else row["median"]


def which_guide() -> list[dict[str, str]]:
    """Questions, what to take and how sure that is, of the comparison of encodings."""
    return json.loads((ROOT / "docs" / "which" / "guide.json").read_text())


def people() -> Results:
    """Of person re-identification."""
    from findings.results import Results  # needs SciPy, which the site does without

    report = json.loads((ROOT / "docs" / "reid" / "experiment.json").read_text())
    return Results.of(report["results"])
