"""The pages written by hand: all are there, and their numbers are those of the result files."""

import json
import re
from pathlib import Path

import tables

DOCS = Path(__file__).parents[1] / "docs"
TOP = ["index", "start", "quickstart", "models", "sizes", "limits", "security", "compatibility"]
TOP += ["architecture", "tests"]
PAGES = [
    *(DOCS / f"{name}.md" for name in TOP),
    *sorted(DOCS.glob("concepts/*.md")),
    *sorted(DOCS.glob("recipes/*.md")),
]


def test_every_page_is_there_and_has_a_title():
    assert len(PAGES) == len(TOP) + 6 + 10
    for page in PAGES:
        assert page.read_text("utf-8").startswith("# ")


START = " ".join((DOCS / "start.md").read_text("utf-8").split())


def span(values):
    return f"{min(values):.0f} to {max(values):.0f} %"


def test_the_overhead_is_that_of_the_result_files():
    tiny, small = (tables.load(f"overhead_vit_{name}_cpu.json") for name in ("tiny", "small"))
    ratios = [each["ratios_to_unpatched"]["nothing"]["median"] for each in (tiny, small)]
    assert "{:.2f} of the time of ViT-Ti and {:.2f} of ViT-S".format(*ratios) in START
    seconds = tiny["import_seconds_beyond_torch"]
    assert f"`import posenc` takes {seconds:.2f} s beyond torch" in START


def test_accuracies_are_those_of_the_comparison():
    none, *others = json.loads((DOCS / "comparison/comparison.json").read_text())["rows"]
    assert none["encoding"] == "none"
    assert f"{none['CLS']:.0f} % from the CLS token and {none['mean']:.0f} %" in START
    assert f"({span([row[pool] for row in others for pool in ('CLS', 'mean')])})" in START


def test_counts_are_those_of_the_registry_and_of_the_sweep():
    index, models, coverage = (
        " ".join((DOCS / f"{name}.md").read_text("utf-8").split())
        for name in ("index", "models", "coverage")
    )
    assert f"posenc has {len(tables.built_in())} of them" in index
    grid, stages = re.findall(r"(\d+) of \d+ configurations", coverage)[:2]
    assert f"All {grid} configurations with one grid" in models
    assert f"All {stages} configurations of Swin" in models
