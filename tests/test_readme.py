"""Every Python block of the README runs, and the first one comes early."""

import inspect
import json
import re
import sys
import types
import warnings
from pathlib import Path

import pytest
import tables

import posenc
from posenc import registry

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=[f"block{i}" for i in range(len(BLOCKS))])
def test_block_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_ENCODINGS", dict(registry._ENCODINGS))
    page = types.ModuleType("readme")  # a module, or its classes could not be pickled
    monkeypatch.setitem(sys.modules, "readme", page)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(compile(block, "README.md", "exec"), page.__dict__)


def test_runnable_code_by_line_25():
    lines = README.read_text().splitlines()
    assert lines.index("```python") < 25


def test_own_encoding_is_about_30_lines():
    block = next(b for b in BLOCKS if "class Distance" in b)
    assert len([line for line in block.splitlines() if line.strip()]) <= 30


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: page.name)
def test_quoted_tables_are_those_of_the_result_files(page):
    text = page.read_text()
    assert tables.filled(text) == text
    assert text.count("<!-- table: ") == text.count("<!-- end -->") > 0


@pytest.mark.parametrize("name", tables.built_in())
def test_each_class_names_its_paper_and_its_docstring_too(name):
    cls = registry.encoding_class(name)
    assert "paper" in vars(cls), (
        f'{cls.__name__} has no paper: give it paper = ("Authors et al. 2021", '
        '"https://arxiv.org/abs/..."), name and address of what else it is from, or None where it '
        "is ours, and run `make tables`"
    )
    reference = inspect.getdoc(cls).partition("\nReference: ")[2]
    if cls.paper is None:
        assert reference.startswith("ours")
    else:
        authors, address = cls.paper
        assert authors in reference
        assert address.startswith("https://")
        assert address.removeprefix("https://arxiv.org/abs/") in reference or "arxiv" not in address


def test_the_encodings_are_those_of_the_registry_and_what_they_are_checked_against(monkeypatch):
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", tables.table("encodings"), re.MULTILINE))
    assert list(rows) != sorted(rows) == posenc.list_encodings() == tables.built_in()
    assert rows["peg"].startswith("on tokens, after blocks | Positions from")
    assert " | without effect | 15,360 | tokens | " in rows["local_ffn"]  # 4 * 384 channels
    assert rows["human_part"].endswith(" | without effect | 235 | low rank | loops | ours")
    paper = "[Graham et al. 2021](https://arxiv.org/abs/2104.01136)"
    assert rows["levit"].endswith(f" | without effect | 1,176 | table | loops | {paper}")
    assert r"`b_h[i, j] = table_h[\|d_row\|, \|d_column\|]` |" in rows["levit"]
    assert " | with an effect | 6 | scale | published code | " in rows["cosine"]
    assert " | query table, value table | " in rows["shaw"]
    monkeypatch.setattr(registry, "_ENCODINGS", dict(registry._ENCODINGS))
    posenc.register_encoding("mine", type("Mine", (posenc.SwinBias,), {}))
    assert "`mine`" not in tables.table("encodings")


def test_the_quoted_overhead_equals_the_result_files():
    results = README.parent / "benchmarks" / "results"
    tiny, small = (
        json.loads((results / f"overhead_vit_{name}_cpu.json").read_text())["ratios_to_unpatched"]
        for name in ("tiny", "small")
    )
    quoted = (
        f"{tiny['nothing']['median']:.2f} of ViT-Ti and {small['nothing']['median']:.2f} of ViT-S"
    )
    assert quoted in README.read_text()


def test_quoted_accuracies_equal_the_comparison():
    rows = json.loads((README.parent / "docs/comparison/comparison.json").read_text())["rows"]
    none, *others = rows
    assert none["encoding"] == "none"
    text = README.read_text()
    assert f"{none['CLS']:.0f} % from the CLS token and {none['mean']:.0f} %" in text
    values = [row[readout] for row in others for readout in ("CLS", "mean")]
    assert f"({min(values):.0f} to {max(values):.0f} %)" in text


def test_the_quoted_import_time_is_that_of_the_result_file():
    seconds = tables.load("overhead_vit_tiny_cpu.json")["import_seconds_beyond_torch"]
    assert f"`import posenc` takes {seconds:.2f} s beyond torch" in README.read_text()
