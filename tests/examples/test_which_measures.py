"""What the comparison of encodings concludes from its records."""

import math

import numpy as np
import pytest
from scipy.stats import kendalltau
from which.claims import verdict
from which.guide import SLOWER, answers, cheap_encodings
from which.measures import (
    MEASURES,
    agreement,
    difference,
    resample,
    standings,
)
from which.results import Job, Results

IMAGES = 400


def records_of(shares, part="alone", readout="mean", condition="1x"):
    """Records with these shares of right images: encoding -> one for each seed."""
    return {
        Job(part, encoding, readout, seed): {"tests": {condition: [round(IMAGES * share), IMAGES]}}
        for encoding, values in shares.items()
        for seed, share in enumerate(values)
    }


def test_a_clear_best_is_sure():
    found = standings(
        records_of({"worse": [0.5, 0.51, 0.49], "better": [0.8, 0.81, 0.79]}), MEASURES["mean"]
    )
    assert list(found) == ["better", "worse"]
    assert (found["better"].rank, found["better"].ranks) == (1, (1, 1))
    assert found["better"].mean == pytest.approx(80)
    assert not found["worse"].may_be_best
    middle, low, high = found["worse"].behind
    assert low < middle < high
    assert middle == pytest.approx(30)


def test_seeds_that_disagree_leave_it_open():
    found = standings(
        records_of({"one": [0.9, 0.5, 0.7], "other": [0.6, 0.8, 0.67]}), MEASURES["mean"]
    )
    assert all(each.may_be_best for each in found.values())
    assert all(each.ranks == (1, 2) for each in found.values())


def test_equals_share_their_ranks():
    found = standings(
        records_of({"a": [1.0] * 3, "b": [1.0] * 3, "c": [0.2] * 3}), MEASURES["mean"]
    )
    assert {name: (one.rank, one.ranks) for name, one in found.items()} == {
        "a": (1, (1, 2)),
        "b": (1, (1, 2)),
        "c": (3, (3, 3)),
    }


def test_few_images_leave_it_open():
    """Seeds that agree by chance do not make ten images many."""
    records = {
        Job("alone", encoding, "mean", seed): {"tests": {"1x": [right, 10]}}
        for encoding, right in {"one": 8, "other": 7}.items()
        for seed in range(3)
    }
    assert standings(records, MEASURES["mean"])["other"].may_be_best


def test_resampling_has_the_spread_of_a_mean():
    """Its variance is that of the seeds over their number, and that of counting images."""
    rng = np.random.default_rng(0)
    shares = 0.7 + 0.05 * rng.standard_normal(6)
    seeds = [[(round(10_000 * share), 10_000)] for share in shares]
    expected = math.hypot(shares.std(ddof=1) / math.sqrt(6), math.sqrt(0.7 * 0.3 / 10_000 / 6))
    drawn = resample(seeds, "name")
    assert drawn.mean() == pytest.approx(100 * shares.mean(), abs=0.2)
    assert drawn.std() == pytest.approx(100 * expected, rel=0.05)


def test_two_readouts_need_both():
    records = records_of({"one": [0.5, 0.6]}, condition="4.57x")
    assert not standings(records, MEASURES["4.57x"])
    records |= records_of({"one": [0.7]}, readout="CLS", condition="4.57x")
    assert standings(records, MEASURES["4.57x"])["one"].mean == pytest.approx(60)
    assert standings(records, MEASURES["4.57x"])["one"].seeds == 1


def test_shares_of_the_data_are_apart():
    whole = records_of({"one": [0.9], "other": [0.8]}, part="few")
    part = {job._replace(share=1 / 8): record for job, record in whole.items()}
    assert not standings(whole, MEASURES["1/8 of the data"])
    assert len(standings(part, MEASURES["1/8 of the data"])) == 2


def test_difference_has_a_sign():
    records = records_of({"one": [0.5, 0.52, 0.48], "other": [0.7, 0.7, 0.7]})
    sides = [(MEASURES["mean"], name) for name in ("one", "other")]
    middle, low, high = difference(records, *sides)
    assert low < middle < high < 0
    assert middle == pytest.approx(-20)
    assert difference(records, sides[0], (MEASURES["mean"], "missing")) is None


@pytest.mark.parametrize(
    ("points", "here", "word"),
    [
        (10, (5.0, 1.0, 9.0), "same direction"),
        (10, (-5.0, -9.0, -1.0), "**the contrary**"),
        (10, (5.0, -1.0, 9.0), "undecided here"),
        (-10, (-5.0, -9.0, -1.0), "same direction"),
    ],
)
def test_verdict(points, here, word):
    assert verdict(points, here) == word


def test_agreement_is_kendalls():
    one = {"none": 0.9, "a": 0.1, "b": 0.2, "c": 0.3, "d": 0.4}
    other = {"none": 0.1, "a": 0.4, "b": 0.2, "c": 0.5, "d": 0.6}
    records = records_of({name: [share] for name, share in one.items()}, readout="CLS")
    records |= records_of({name: [share] for name, share in other.items()})
    tau, p, number = agreement(records)["CLS", "mean"]
    names = ["a", "b", "c", "d"]
    expected = kendalltau([one[name] for name in names], [other[name] for name in names])
    assert (tau, p, number) == (expected.statistic, expected.pvalue, 4)


def test_guide_answers_from_what_is_there():
    shares = {"none": [0.5] * 3, "swin": [0.8] * 3, "rope": [0.7] * 3}
    records = records_of(shares)
    (answer,) = answers(records)
    assert answer.take == "`swin`"
    assert answer.certainty.startswith("sure here")
    assert "`rope` with 70.0 %" in answer.evidence
    assert "without positions 50.0 %" in answer.evidence


def test_the_cheap_are_compared_among_themselves():
    records = records_of({"none": [0.5] * 3, "swin": [0.8] * 3, "rope": [0.7] * 3})
    for name, median in {"none": 1.0, "swin": SLOWER + 0.01, "rope": SLOWER}.items():
        records[Job("cost", name)] = {"training": {"median": median}}
    assert cheap_encodings(records) == {"none", "rope"}
    assert answers(records)[-1].take == "`rope`"


DATA = {"classes": 10, "training images": 59_000}


def test_results_survive(tmp_path):
    results = Results(tmp_path / "results.json", {"name": "cpu", "counts": {1.5: 3}}, DATA)
    assert results.read() == {}
    records = records_of({"one": [0.5, 0.25]})
    results.write(records, command="as typed")
    assert results.read() == records
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("other", [{"tier": {"name": "gpu"}}, {"data": {"classes": 100}}])
def test_results_of_another_comparison_are_refused(tmp_path, other):
    mine = {"path": tmp_path / "results.json", "tier": {"name": "cpu"}, "data": DATA}
    Results(**mine).write({})
    with pytest.raises(ValueError, match=f"comparison with another {next(iter(other))}: "):
        Results(**mine | other).read()
