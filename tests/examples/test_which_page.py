"""What the comparison's page says, from records made for it."""

from which.guide import answers
from which.page import _agreement, _both, _introduction
from which.results import Job

TIER = {"name": "cpu", "pixels": 28, "passes": 100}
TIER["vit"] = {"embed_dim": 64, "depth": 4, "num_heads": 4, "patch_size": 2}


def record(right, condition="1x"):
    return {"tests": {condition: [right, 100]}}


def test_the_number_of_seeds_is_that_of_the_records():
    records = {Job("alone", "swin", "CLS", 0): record(50), Job("rate", "swin", seed=9): record(50)}
    assert "with up to 1 seeds" in " ".join(_introduction(TIER, records))


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


def test_agreement_shows_p_and_what_chance_gives():
    records = {
        Job("alone", name, readout, 0): record(right)
        for place, name in enumerate(("swin", "rope", "irpe", "peg"))
        for readout, right in {"CLS": 10 * place, "mean": 20 * place}.items()
    }
    said = "\n".join(_agreement(records))
    assert "+1.00 (0.083)" in said  # 2 of the 24 orders are as extreme
    assert "Of 1 such tests 0.05 would have a star by chance" in said
