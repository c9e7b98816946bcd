"""The pages written by hand: their code runs and prints what they say, their numbers are found."""

import importlib.util
import json
import re
import sys
import warnings
from pathlib import Path

import pytest
import tables
import torch

from posenc import registry

DOCS = Path(__file__).parents[1] / "docs"
TOP = ["index", "start", "quickstart", "models", "sizes", "limits", "security", "compatibility"]
TOP += ["architecture"]
PAGES = [
    *(DOCS / f"{name}.md" for name in TOP),
    *sorted(DOCS.glob("concepts/*.md")),
    *sorted(DOCS.glob("recipes/*.md")),
]
# A block of Python, and the text right after it: what it prints.
BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```(?:\n+```text\n(?P<output>.*?)^```)?", re.DOTALL | re.MULTILINE
)


def blocks():
    for page in PAGES:
        for at, block in enumerate(BLOCK.finditer(page.read_text("utf-8"))):
            name = f"{page.relative_to(DOCS).with_suffix('')}-{at}"
            slow = [pytest.mark.slow] if re.search(r"export|Popen|check_encoding", block[0]) else []
            yield pytest.param(block["code"], block["output"], id=name, marks=slow)


@pytest.mark.parametrize(("code", "output"), list(blocks()))
def test_a_block_runs_and_prints_what_the_page_says(code, output, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_ENCODINGS", dict(registry._ENCODINGS))
    path = tmp_path / "page_block.py"  # a file: the source of classes can be read
    path.write_text(code, "utf-8")
    spec = importlib.util.spec_from_file_location("page_block", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "page_block", module)
    torch.manual_seed(0)
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spec.loader.exec_module(module)
    if output is not None:
        assert capsys.readouterr().out.strip() == output.strip()


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


def test_people_are_found_as_in_the_experiment():
    found = {}
    rows = re.findall(
        r"^\| `([\w+]+)` \| ([\d.]+) ± ", (DOCS / "reid/experiment.md").read_text(), re.M
    )
    for name, score in rows:
        found.setdefault(name, []).append(float(score))
    assert f"{span(found['none'])} mAP without positions" in START
    assert f"{span(found['learned'])} with the learned table" in START
    assert f"`human_part` alone reaches {span(found['human_part'])}" in START
    assert f"best of nine, by about a point ({span(found['learned+human_part'])})" in START


def test_counts_are_those_of_the_registry_and_of_the_sweep():
    index, models, coverage = (
        " ".join((DOCS / f"{name}.md").read_text("utf-8").split())
        for name in ("index", "models", "coverage")
    )
    assert f"posenc has {len(tables.built_in())} of them" in index
    grid, stages = re.findall(r"(\d+) of \d+ configurations", coverage)[:2]
    assert f"All {grid} configurations with one grid" in models
    assert f"All {stages} configurations of Swin" in models
