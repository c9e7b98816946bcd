"""The README is short, its code runs, its numbers are measured, its links lead somewhere."""

import inspect
import json
import re
import sys
import types
import warnings
from pathlib import Path

import pytest
import readme_facts
import tables
import torch
from torch.nn.attention.flex_attention import flex_attention

import posenc
from posenc import registry

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PERFORMANCE = (ROOT / "docs" / "performance.md").read_text()
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


def test_it_is_short_beside_the_table_of_encodings():
    lines = README.read_text().splitlines()
    assert len(lines) - len(tables.short_encodings_table().splitlines()) <= 100


def links():
    """Addresses in the README, but for the papers in its table of encodings."""
    text = README.read_text().replace(tables.short_encodings_table(), "")
    inline = re.findall(r"\]\(([^()\s]+)\)", text)
    return inline + re.findall(r"^\[[^]]+\]: (\S+)$", text, re.MULTILINE)


def test_links_work_on_a_package_index_and_name_what_is_in_the_repository():
    project = re.compile(rf"{re.escape(tables.ADDRESS)}/(?:blob|tree|raw)/main/([^#]+)")
    found = {link: project.fullmatch(link) for link in links()}
    elsewhere = [link for link, match in found.items() if match is None]
    assert elsewhere == ["https://github.com/huggingface/pytorch-image-models"]
    paths = [match[1] for match in found.values() if match]
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_each_reference_has_its_link_and_each_link_is_used():
    text = re.sub(r"```.*?```|`[^`]*`", "", README.read_text(), flags=re.DOTALL)
    named = set(re.findall(r"^\[([^]]+)\]: ", text, re.MULTILINE))
    used = set(re.findall(r"\[([^][]+)\](?![(:[])", text))
    assert named == used


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
    part, levit = (" and ".join(tables.model_times(name)) for name in ("human_part", "levit"))
    assert re.fullmatch(r"\d\.\d\d and \d\.\d\d", part)
    assert rows["human_part"].endswith(
        f" | without effect | 235 | low rank | {part} | loops | ours"
    )
    paper = "[Graham et al. 2021](https://arxiv.org/abs/2104.01136)"
    assert rows["levit"].endswith(f" | without effect | 1,176 | table | {levit} | loops | {paper}")
    assert r"`b_h[i, j] = table_h[\|d_row\|, \|d_column\|]` |" in rows["levit"]
    cosine = " and ".join(tables.model_times("cosine"))
    assert f" | with an effect | 6 | scale | {cosine} | published code | " in rows["cosine"]
    assert " | query table, value table | " in rows["shaw"]
    monkeypatch.setattr(registry, "_ENCODINGS", dict(registry._ENCODINGS))
    posenc.register_encoding("mine", type("Mine", (posenc.SwinBias,), {}))
    assert "`mine`" not in tables.table("encodings")


def test_the_short_table_has_the_same_encodings_with_their_papers():
    rows = tables.short_encodings_table().splitlines()[2:]
    names = [row.split("`")[1] for row in rows]
    assert sorted(names) == tables.built_in()
    assert names[-1] == "local_ffn"
    assert all(row.endswith((" | ours |", ") |")) for row in rows)


def test_which_one_is_what_the_comparison_found():
    """Each answer with how sure it is, and that of every question which the README asks."""
    guide = json.loads((ROOT / "docs/which/guide.json").read_text())
    rows = readme_facts.which_table().splitlines()[3:-1]
    assert [row.split(" | ")[0][2:] for row in rows] == list(readme_facts.QUESTIONS)
    for row in rows:
        assert any(row == f"| {' | '.join(one.values())} |" for one in guide)


def test_people_are_the_last_line_with_how_sure_it_is():
    """The interval with CLS leaves 0 out, the one with the mean token does not."""
    *_, last = readme_facts.which_table().splitlines()
    assert last.startswith("| You recognize upright people | `body+human_part` | sure with CLS: ")
    number = r"([+-]\d+\.\d)"
    pattern = rf"{number} mAP on `learned` \({number} to {number}\)"
    found = [tuple(map(float, found)) for found in re.findall(pattern, last)]
    (cls, cls_low, cls_high), (mean, mean_low, mean_high) = found
    assert "; unsure with the mean token: " in last
    assert 0 < cls_low < cls < cls_high
    assert mean_low < 0 < mean < mean_high


def test_choices_and_seeds_are_those_of_the_comparison():
    records = json.loads((ROOT / "docs/which/results.json").read_text())["records"]
    seeds = {}
    for part, encoding, readout, seed, *_ in (record["job"] for record in records):
        if part == "alone":
            seeds.setdefault((encoding, readout), set()).add(seed)
    assert {len(some) for some in seeds.values()} == {3, 5}
    assert len({encoding for encoding, _ in seeds}) == 18
    assert "with 18 choices and three to five seeds" in " ".join(README.read_text().split())


def test_three_ratios_are_those_of_the_reports():
    model, irpe, memory = readme_facts.ratio_lines().splitlines()
    medians = tables.load("model_cpu.json")["ratios_to_unpatched"]
    assert f"**{medians['swin']['median']:.2f}** in inference" in model
    rows = tables.load("attention_cpu.json")["ratios_to_plain_sdpa"]
    theirs = [r for r in rows if r["case"] == "peer: official iRPE k" and "24x24" in r["layout"]]
    assert f"official code takes {theirs[0]['median']:.2f}" in irpe
    rows = tables.load("attention_cpu_training.json")["ratios_to_plain_sdpa"]
    ours = [r for r in rows if r["case"] == "swin" and "32x32" in r["layout"]]
    assert f"**{ours[0]['memory_ratio']:.1f}** times the memory" in memory


def test_flex_attention_has_no_gradient_on_the_cpu():
    q = torch.randn(1, 1, 4, 16, requires_grad=True)
    with pytest.raises(NotImplementedError, match="does not support backward on CPU"):
        flex_attention(q, q, q)


def test_the_quoted_overhead_equals_the_result_files():
    results = ROOT / "benchmarks" / "results"
    tiny, small = (
        json.loads((results / f"overhead_vit_{name}_cpu.json").read_text())["ratios_to_unpatched"]
        for name in ("tiny", "small")
    )
    quoted = (
        f"{tiny['nothing']['median']:.2f} of ViT-Ti and {small['nothing']['median']:.2f} of ViT-S"
    )
    assert quoted in " ".join(PERFORMANCE.split())


def test_the_quoted_import_time_is_that_of_the_result_file():
    seconds = tables.load("overhead_vit_tiny_cpu.json")["import_seconds_beyond_torch"]
    assert f"`import posenc` takes {seconds:.2f} s beyond torch" in PERFORMANCE
