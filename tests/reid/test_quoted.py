"""What pages say of the experiment is what the experiment found."""

import json
import re
import statistics
from pathlib import Path

import pytest
from findings.report import write_report
from scipy.stats import ttest_rel

ROOT = Path(__file__).parents[2]
REPORT = json.loads((ROOT / "docs" / "reid" / "experiment.json").read_text())
PAGES = {
    name: " ".join((ROOT / name).read_text().split())
    for name in ("README.md", "docs/start.md", "examples/reid/README.md")
}
POOLS = "CLS", "mean"


def scores(encoding, pool, test="as trained"):
    """mAP in percent of each seed."""
    found = {
        record["seed"]: 100 * record["tests"][test]["mAP"]
        for record in REPORT["results"]
        if (record["encoding"], record["pool"]) == (encoding, pool)
    }
    return [found[seed] for seed in sorted(found)]


def means(encoding, test="as trained"):
    return [statistics.mean(scores(encoding, pool, test)) for pool in POOLS]


def span(values):
    return f"{min(values):.0f} to {max(values):.0f} %"


def gain(pool):
    """Of body and its prior over the table: points, and their interval."""
    test = ttest_rel(scores("body+human_part", pool), scores("learned", pool))
    low, high = test.confidence_interval()
    at = POOLS.index(pool)
    return means("body+human_part")[at] - means("learned")[at], low, high


def test_what_the_first_page_says():
    for pool, sure in zip(POOLS, ("sure with CLS", "unsure with the mean token"), strict=True):
        points, low, high = gain(pool)
        assert (low > 0) == sure.startswith("sure")
        said = f"{sure}: {points:+.1f} mAP on `learned` ({low:+.1f} to {high:+.1f})"
        assert said in PAGES["README.md"]


def test_what_the_page_to_start_says():
    page = PAGES["docs/start.md"]
    for encoding, words in {
        "none": "mAP without positions",
        "learned": "with the learned table",
        "body": "with `body`",
        "body+human_part": "with `body+human_part`",
    }.items():
        assert f"{span(means(encoding))} {words}" in page
    for pool, words in zip(
        POOLS, ("points on the table with CLS", "with the mean token"), strict=True
    ):
        points, low, high = gain(pool)
        assert f"{points:+.1f} {words} (95 % interval {low:+.1f} to {high:+.1f})" in page


def test_pairs_of_scores_on_the_examples_page():
    """Written as `name` and the scores of CLS and mean token, as trained."""
    quoted = re.findall(r"`([\w+()]+)` (\d+\.\d) and (\d+\.\d) %", PAGES["examples/reid/README.md"])
    assert len(quoted) >= 6
    for encoding, *values in quoted:
        assert values == [f"{mean:.1f}" for mean in means(encoding)], encoding


@pytest.mark.parametrize(
    ("encoding", "test", "words"),
    [
        ("peg", "shifted far", "`peg` keeps {} and {} % there"),
        ("learned", "shifted far", "the table {} and {} %."),
        ("rope", "taller", "**taller grid** it falls to {} and {} %"),
    ],
)
def test_other_conditions_on_the_examples_page(encoding, test, words):
    values = (f"{mean:.1f}" for mean in means(encoding, test))
    assert words.format(*values) in PAGES["examples/reid/README.md"]


def test_body_stands_above_the_table_in_all_means():
    """As the page of the example says."""
    tests = REPORT["results"][0]["tests"]
    pairs = [zip(means("body", one), means("learned", one), strict=True) for one in tests]
    assert all(body > table for pair in pairs for body, table in pair)
    assert "above the table in all twelve means" in PAGES["examples/reid/README.md"]


def test_the_page_is_that_of_the_numbers(tmp_path):
    stored = (ROOT / "docs" / "reid" / "experiment.md").read_text()
    assert write_report(REPORT, tmp_path).strip() == stored.strip()
