"""The report of an experiment: what its tables and conclusions say is what the seeds say."""

import re

import numpy as np
import pytest
from findings import report
from findings.results import Results
from scipy.stats import false_discovery_control, ttest_rel

TEST = "as trained"
EVEN = {
    "none": [20.0, 31.0, 42.0, 52.0],
    "learned": [30.0, 40.0, 51.0, 60.0],  # seeds differ more than encodings
    "swin": [31.0, 39.0, 52.5, 59.0],
}
UNEVEN = {
    "learned": {0: 30.0, 1: 40.0, 2: 51.0, 3: 60.0},
    "peg": {1: 47.0, 2: 57.5, 4: 90.0},  # seed 4 has nothing to be compared with
    "swin": {3: 59.0, 0: 28.0, 2: 53.0},  # as they came
    "body": {0: 33.0, 1: 42.0, 2: 54.5, 3: 62.0},
    "body+human_part": {0: 34.5, 2: 55.0},
    "body(adaptive)": {5: 50.0},  # nothing at all
}


def records(values, pool="CLS", tests=(TEST,)):
    """(encoding -> mAP of each seed), as in experiment.json."""
    return [
        {
            "encoding": name,
            "pool": pool,
            "seed": seed,
            "tests": {test: {"mAP": value / 100} for test in tests},
        }
        for name, seeds in values.items()
        for seed, value in (seeds.items() if isinstance(seeds, dict) else enumerate(seeds))
    ]


def paired(name, base, values=UNEVEN):
    """Of scipy, over the seeds that both have."""
    common = sorted(values[name].keys() & values[base].keys())
    return ttest_rel(*([values[one][seed] for seed in common] for one in (name, base)))


def test_seeds_are_paired():
    results = Results.of(records(EVEN)[::-1])
    verdicts = results.against_base("CLS", TEST)
    raw = {name: ttest_rel(EVEN[name], EVEN["learned"]).pvalue for name in ("none", "swin")}
    # Benjamini and Hochberg: twice the smaller of two
    assert verdicts["none"].p == pytest.approx(2 * raw["none"])
    assert verdicts["swin"].p == pytest.approx(raw["swin"])
    assert report.conclusions(results) == [
        "- CLS token, as trained: no clear difference: `swin` (+0.1); worse: the other 1"
    ]
    rows = report.table(results, "CLS")
    assert "| `learned` | 45.2 ± 13.0 |" in rows
    assert "| `none` | 36.2 ± 13.8 ∘ |" in rows
    assert "| `swin` | 45.4 ± 12.7 |" in rows


def test_seeds_that_both_have():
    results = Results.of(records(UNEVEN))
    verdicts = results.against_base("CLS", TEST)
    names = ["peg", "swin", "body", "body+human_part"]
    raw = [paired(name, "learned").pvalue for name in names]
    found = {name: verdict.p for name, verdict in verdicts.items()}
    assert found == pytest.approx(dict(zip(names, false_discovery_control(raw), strict=True)))
    assert verdicts["peg"].gain == pytest.approx((7.0 + 6.5) / 2)  # not of all its seeds
    assert verdicts["swin"].gain == pytest.approx((-2.0 + 2.0 - 1.0) / 3)


def test_uneven_numbers_are_told():
    results = Results.of(records(UNEVEN))
    rows = report.table(results, "CLS")
    assert rows[0] == "| encoding | seeds | as trained |"
    assert "| `peg` | 3 | 64.8 ± 22.4 |" in [row.replace(" ★", "") for row in rows]
    assert "| `body(adaptive)` | 1 | 50.0 |" in rows
    (line,) = report._legend(results)
    assert "over 1 to 4 seeds (see the column)" in line
    (line,) = report._legend(Results.of(records(EVEN)))
    assert "over 4 seeds, each" in line


def test_answers_are_differences_with_intervals():
    results = Results.of(records(UNEVEN) + records(EVEN, "mean"))
    rows = report.answers(results)[4:]
    expected = {
        ("body", "learned"): 4,
        ("body+human_part", "learned"): 2,
        ("body+human_part", "body"): 2,
    }
    assert len(rows) == len(expected)  # others were not trained, or share no seeds
    for row, (pair, number) in zip(rows, expected.items(), strict=True):
        found = paired(*pair)
        low, high = found.confidence_interval(0.95)
        words, readout, seeds, cell = (one.strip() for one in row.strip("|").split("|"))
        assert (words, readout) == ("`{}` against `{}`".format(*pair), "CLS")
        assert int(seeds) == number
        numbers = [float(one) for one in re.findall(r"[+-]\d+\.\d", cell)]
        mean = np.mean([UNEVEN[pair[0]][s] - UNEVEN[pair[1]][s] for s in UNEVEN[pair[0]]])
        assert numbers == pytest.approx([mean, low, high], abs=0.051)
        assert cell.startswith("**") == (found.pvalue < 0.05) == (low > 0 or high < 0)
    assert "**" in rows[0]
    assert "**" not in rows[2]


def test_differences_without_spread():
    results = Results.of(records({"learned": [30.0, 40.0], "body": [30.0, 40.0]}))
    assert results.against_base("CLS", TEST)["body"] == (0.0, 1.0)
    assert report.answers(results)[-1].endswith("| +0.0 (+0.0 to +0.0) |")
    always = Results.of(records({"learned": [30.0, 40.0], "body": [32.0, 42.0]}))
    assert always.against_base("CLS", TEST)["body"] == (2.0, 0.0)


def test_p_values_are_folded_away():
    lines = report.differences(Results.of(records(EVEN)))
    p = ttest_rel(EVEN["swin"], EVEN["learned"]).pvalue
    assert f"| `swin` | +0.1 (p {p:.3f}) |" in lines
    assert "| `none` | -9.0 (p < 0.001) |" in lines
    assert (lines[0], lines[-2]) == ("<details>", "</details>")
    assert not any("`learned` |" in line for line in lines)


@pytest.mark.parametrize("values", [{"none": [3.0, 4.0]}, {"learned": [3.0], "body": [4.0]}])
def test_nothing_to_compare(values):
    results = Results.of(records(values))
    assert results.against_base("CLS", TEST) == {}
    assert report.conclusions(results) == report.answers(results) == []
    assert report.differences(results) == []


def test_dots_of_the_picture(tmp_path, monkeypatch):
    from matplotlib import pyplot as plt

    monkeypatch.setattr(plt, "close", lambda figure: None)
    both = records(UNEVEN, tests=(TEST, "shifted", "taller")) + records(EVEN, "mean")
    report.draw(Results.of(both), tmp_path / "dots.png")
    axes = plt.gcf().axes
    drawn = [[line.get_xdata() for line in axis.lines if line.get_marker() == "o"] for axis in axes]
    numbers = [list(scores.values()) for scores in UNEVEN.values()]
    assert len(axes) == 4  # two a row
    for found in (drawn[1], drawn[2]):  # those of one readout
        assert [list(one) for one in found] == [pytest.approx(one) for one in numbers]
    assert len(drawn[0]) == len(UNEVEN) + len(EVEN)
    monkeypatch.undo()
    plt.close("all")
