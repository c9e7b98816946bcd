"""What the README says of the experiment is what the experiment found."""

import json
import re
from pathlib import Path

import pytest
from findings.report import write_report

ROOT = Path(__file__).parents[2]
RESULT = (ROOT / "docs" / "reid" / "experiment.md").read_text()
README = " ".join((ROOT / "README.md").read_text().split())


@pytest.fixture
def scores():
    """Encoding -> mAP as trained, of the CLS token and of the mean token."""
    found = {}
    for name, score in re.findall(r"^\| `([\w+()]+)` \| ([\d.]+) ± ", RESULT, flags=re.MULTILINE):
        found.setdefault(name, []).append(float(score))
    assert {len(values) for values in found.values()} == {2}
    return found


def span(values):
    return f"{min(values):.0f} to {max(values):.0f} %"


def test_quoted_scores(scores):
    assert f"reaches {span(scores['none'])} mAP without positions" in README
    assert f"{span(scores['learned'])} with the learned table, which none of the others" in README
    assert f"`human_part` alone reaches {span(scores['human_part'])}" in README


def test_the_best_is_named(scores):
    table = {name: values for name, values in scores.items() if name != "learned+human_part"}
    both = scores["learned+human_part"]
    for readout in (0, 1):
        assert max(table, key=lambda name: table[name][readout]) == "learned"
        assert 0.5 < both[readout] - table["learned"][readout] < 1.5
    assert len(scores) == 9


def test_no_encoding_is_clearly_better():
    assert not re.search(r"^\|.*★", RESULT, flags=re.MULTILINE)
    assert not re.search(r"^- .*: better: `", RESULT, flags=re.MULTILINE)
    assert len(re.findall(r"^\| `none` \|.*∘ \|$", RESULT, flags=re.MULTILINE)) == 2


def test_the_page_is_that_of_the_numbers(tmp_path):
    """With what was remarked by hand: here, that the people were drawn by an older program."""
    report = json.loads((ROOT / "docs" / "reid" / "experiment.json").read_text())
    assert write_report(report, tmp_path).strip() == RESULT.strip()
    assert ("older generator" in RESULT) == (report["commit"] == "af095eb")
