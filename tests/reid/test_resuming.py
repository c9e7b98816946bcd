"""A training that goes on after a kill, and one that is through."""

import json
import shutil
import signal
import subprocess
import time

import pytest
import tiny_reid
from training import run as training
from training.checkpoints import WEIGHTS, load_newest
from training.run import SCORES, train
from trainings import ONE_THREAD, command, equal, run, weights

pytestmark = pytest.mark.slow


@pytest.mark.examples
def test_killed_and_resumed(folder, tmp_path):
    """Equal, bit for bit, to a training that nothing interrupted."""
    changes = {"epochs": 60, "encoding": "irpe+peg", "freeze": 5, "layer_decay": 0.9}
    changes |= {"center_weight": 0.01, "circle_weight": 0.01, "mining": "weighted", "jitter": 0.5}
    changes |= tiny_reid.PARTS
    run(folder, tmp_path / "whole", **changes)
    out = tmp_path / "killed"
    process = subprocess.Popen(
        command(folder, out, **changes),
        env=ONE_THREAD,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 100
    while not list(out.glob("checkpoints/epoch-0001*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL  # it was not through
    assert not (out / WEIGHTS).exists()
    assert list(out.glob("checkpoints/epoch-*"))
    run(folder, out, **changes)
    assert equal(weights(out), weights(tmp_path / "whole"))
    scores = [json.loads((path / SCORES).read_text()) for path in (out, tmp_path / "whole")]
    assert scores[0]["mAP"] == scores[1]["mAP"]


def test_a_checkpoint_that_is_not_complete_does_not_count(data, trained, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(trained, out)
    (finished,) = (out / "checkpoints").iterdir()
    finished.rename(out / "checkpoints" / "partial-00003")
    step = training.Run(tiny_reid.config(), data, out, quiet=True)
    assert load_newest(step.accelerator, out) == 0


def test_a_finished_training_is_not_trained_again(data, trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path / "copy")
    monkeypatch.setattr(training.Run, "step", None)
    scores = train(tiny_reid.config(), data, tmp_path / "copy", quiet=True)
    assert equal(weights(tmp_path / "copy"), weights(trained))
    assert scores.mean_average_precision == json.loads((trained / SCORES).read_text())["mAP"]
