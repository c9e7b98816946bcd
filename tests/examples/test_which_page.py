"""What the comparison's page says, from records made for it."""

import shutil
from dataclasses import asdict
from pathlib import Path

from which.guide import answers
from which.page import _agreement, _at_the_end, _both, _introduction, _missing, write_page
from which.results import Job, Results
from which.tiers import TIERS

ROOT = Path(__file__).parents[2]
TIER = asdict(TIERS["cpu"])


def record(right, condition="1x"):
    return {"tests": {condition: [right, 100]}}


def test_the_number_of_seeds_is_that_of_the_records():
    records = {Job("alone", "swin", "CLS", 0): record(50), Job("rate", "swin", seed=9): record(50)}
    assert "with up to 1 seeds" in " ".join(_introduction(TIER, records))


def test_what_was_not_run_is_said():
    records = {Job("alone", "swin", "CLS", 0): record(50)}
    said = " ".join(_missing(records))
    for part in ("three-cell test", "few images", "learned table", "costs", "other sizes", "shift"):
        assert part in said
    assert "each encoding alone" not in said


def test_a_rate_at_the_end_of_those_tried_is_said():
    tier = {"rates": [1, 5]}
    shares = {("swin", 1): 50, ("swin", 5): 60, ("irpe", 1): 50, ("irpe", 5): 40}
    records = {
        Job("rate", name, rate=rate): record(right, "validation")
        for (name, rate), right in shares.items()
    }
    assert "the highest was best for swin:" in _at_the_end(tier, records)


def test_a_run_that_was_stopped_during_its_trials_has_a_page(tmp_path):
    out = tmp_path / "run"
    known = dict.fromkeys(("commit", "device", "python", "torch", "timm"), "")
    trial = record(50, "validation") | known | {"seconds": 1.0}
    results = Results(out / "results.json", TIER, {"training images": 10})
    results.write({Job("rate", "swin", rate=1): trial}, command="as typed")
    assert "No question was answered yet" in write_page(out).read_text()
    assert not list(out.glob("*.png"))


def test_readouts_weigh_the_same():
    """One readout may have more seeds, as the closest have."""
    records = {Job("alone", "swin", "CLS", seed): record(80) for seed in range(5)}
    assert _both(records, "swin", "1x") == "-"  # no mean of both
    records |= {Job("alone", "swin", "mean", seed): record(40) for seed in range(3)}
    assert _both(records, "swin", "1x") == "60.0"


def test_a_single_seed_is_not_sure():
    shares = {"swin": 90, "none": 10}
    records = {Job("alone", name, "CLS", 0): record(right) for name, right in shares.items()}
    (answer,) = answers(records)
    assert answer.take == "`swin`"
    assert answer.certainty.startswith("unsure: encodings with a single seed")


def test_where_all_may_be_the_best_none_is_named():
    records = {
        Job("alone", name, "CLS", seed): record(50 + seed)
        for name in ("swin", "none")
        for seed in range(3)
    }
    (answer,) = answers(records)
    assert answer.take == "any: no difference was seen"
    assert answer.certainty == "unsure: 2 of 2 may be the best"


def test_agreement_shows_p_and_what_chance_gives():
    records = {
        Job("alone", name, readout, 0): record(right)
        for place, name in enumerate(("swin", "rope", "irpe", "peg"))
        for readout, right in {"CLS": 10 * place, "mean": 20 * place}.items()
    }
    said = "\n".join(_agreement(records))
    assert "+1.00 (0.083)" in said  # 2 of the 24 orders are as extreme
    assert "Of 1 such tests 0.05 would have a star by chance" in said


def test_the_published_page_follows_from_its_results(tmp_path):
    """`python examples/which_encoding.py --out docs/which` writes it again."""
    published = ROOT / "docs" / "which"
    copy = tmp_path / "which"
    shutil.copytree(published, copy)
    assert write_page(copy).read_text() == published.with_suffix(".md").read_text()
    assert (copy / "guide.json").read_text() == (published / "guide.json").read_text()
