"""A training: its losses, what it learns, the same twice, in 16 bits."""

import json

import pytest
import tiny_reid
import torch
from data.batches import training_labels
from data.market import Splits
from model.losses import batch_hard_triplet, identity_loss
from training import run as training
from training.run import SCORES, train
from trainings import equal, run, weights


@pytest.mark.slow
def test_the_same_twice(data, trained, tmp_path):
    torch.manual_seed(7)
    scores = train(tiny_reid.config(), data, tmp_path, quiet=True)
    assert equal(weights(tmp_path), weights(trained))
    report = json.loads((trained / SCORES).read_text())
    assert report["mAP"] == scores.mean_average_precision
    assert report["queries"] == len(data.query)
    assert 0 <= report["waiting"] <= 1


@pytest.mark.slow
def test_it_learns(data, tmp_path):
    """On the people of the training themselves."""
    seen = Splits(data.train, data.train[::2], data.train[1::2])
    few = tiny_reid.config(epochs=2, learning_rate=0.0)
    many = tiny_reid.config(epochs=80, people=8, learning_rate=3e-3)
    with pytest.warns(UserWarning, match="a learning rate of 0 trains nothing"):
        before = train(few, seen, tmp_path / "few", quiet=True)
    after = train(many, seen, tmp_path / "many", quiet=True)
    assert after.mean_average_precision > before.mean_average_precision + 0.2


def test_losses_of_a_step(data, tmp_path):
    config = tiny_reid.config(patch_weight=0.5, triplet="0.3", encoding="none")
    step = training.Run(config, data, tmp_path, quiet=True)
    step.network.train()
    images, indices = next(iter(step.batches))
    seen = step.network(images)
    losses = step.losses(seen, indices)
    people = torch.tensor(training_labels(data.train))[indices]
    expected = (
        identity_loss(seen.logits, people, 0.1),
        batch_hard_triplet(0.3)(seen.features, people),
    )
    torch.testing.assert_close(losses["identity"], expected[0])
    torch.testing.assert_close(losses["triplet"], expected[1])
    torch.testing.assert_close(losses["loss"], sum(expected) + losses["patches"])
    assert losses["patches"] > 0


@pytest.mark.slow
def test_sixteen_bits(folder, tmp_path):
    run(folder, tmp_path, precision="bf16")
    assert 0 < json.loads((tmp_path / SCORES).read_text())["mAP"] <= 1
    assert {value.dtype for value in weights(tmp_path).values()} == {torch.float32, torch.int64}


def test_the_rate_rises_and_falls():
    share = training.warm_cosine(tiny_reid.config(epochs=4), 10)
    assert share(0) == pytest.approx(0.1)
    assert share(9) == share(10) == 1
    assert share(25) == pytest.approx(0.5)
    assert share(39) < 0.01
