"""A training with every option of its own goes on, after an interruption, bit for bit."""

import pytest
import tiny_reid
import torch
from training import run as training
from training.run import train
from trainings import equal, weights

EVERYTHING = {
    "identity": "coco",
    "mining": "weighted",
    "circle_weight": 0.1,
    "center_weight": 0.01,
    "patch_weight": 0.5,
    "jitter": 0.5,
    "crop": 0.1,
    "layer_decay": 0.7,
    "freeze": 1,
    "epochs": 4,
    "encoding": "learned+irpe",
    "flip_test": True,
}


class StoppedError(Exception):
    pass


def stopped_after(epochs):
    """`Run.one_epoch`, which fails in the middle of a later one."""
    whole = training.Run.one_epoch

    def one_epoch(run, epoch, bar):
        if epoch < epochs:
            return whole(run, epoch, bar)
        run.step(*next(iter(run.batches)))
        raise StoppedError

    return one_epoch


@pytest.mark.parametrize(
    "changes",
    [EVERYTHING, {**EVERYTHING, "identity": "circle", "mining": "hard", "hard_factor": 0.1}],
    ids=["coco", "circle"],
)
def test_interrupted(data, tmp_path, monkeypatch, changes):
    torch.set_num_threads(1)
    config = tiny_reid.config(**changes)
    train(config, data, tmp_path / "whole", quiet=True)
    monkeypatch.setattr(training.Run, "one_epoch", stopped_after(2))
    with pytest.raises(StoppedError):
        train(config, data, tmp_path / "stopped", quiet=True)
    monkeypatch.undo()
    torch.manual_seed(99)
    train(config, data, tmp_path / "stopped", quiet=True)
    assert equal(weights(tmp_path / "stopped"), weights(tmp_path / "whole"))


def test_losses_of_a_step(data, tmp_path):
    """Each with its weight, those without one left out."""
    config = tiny_reid.config(**{**EVERYTHING, "freeze": 0, "triplet_weight": 2.0})
    run = training.Run(config, data, tmp_path, quiet=True)
    run.network.train()
    images, indices = next(iter(run.batches))
    seen, people = run.network(images), run.labels[indices]
    losses = run.losses(seen, indices)
    assert set(losses) == {"loss", "identity", "triplet", "circle", "center", "patches"}
    torch.testing.assert_close(losses["triplet"], 2 * run.triplet(seen.features, people))
    torch.testing.assert_close(losses["circle"], 0.1 * run.circle(seen.features, people))
    center = 0.01 * seen.features.square().sum(1).mean()  # centers start at zero
    torch.testing.assert_close(losses["center"], center)
    total = sum(loss for name, loss in losses.items() if name != "loss")
    torch.testing.assert_close(losses["loss"], total)
    run.step(images, indices)
    assert run.centers.centers[people].abs().sum() > 0
    few = tiny_reid.config(triplet_weight=0.0)
    run = training.Run(few, data, tmp_path, quiet=True)
    assert set(run.losses(seen, indices)) == {"loss", "identity"}


def test_a_hard_factor_without_hard_triplets():
    with pytest.raises(ValueError, match=r"hard_factor is for mining hard, got 0\.1 with weighted"):
        tiny_reid.config(mining="weighted", hard_factor=0.1)


def test_the_flip_test(data, trained, tmp_path):
    """Scores of the mean of both features, in the training's own evaluation."""
    from search.features import embed_photos, score
    from training.checkpoints import load_network

    run = training.Run(tiny_reid.config(flip_test=True), data, trained, quiet=True)
    run.resume("")
    network = load_network(trained, "cpu")
    parts = (data.query, data.gallery)
    size = tiny_reid.config().size
    both, one = ([embed_photos(network, p, size, flip=f) for p in parts] for f in (True, False))
    found = run.evaluate()
    assert torch.equal(found.average_precision, score(*both, data).average_precision)
    assert not torch.allclose(both[0], one[0])
