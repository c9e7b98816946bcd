"""A training in two processes, and one that is watched."""

import json
import subprocess

import pytest
import torch
from training.run import SCORES
from trainings import ONE_THREAD, command, run, weights

pytestmark = pytest.mark.slow
# No loss sees what is added to all features: the gradient is rounding, which Adam makes a step of.
ONLY_SHIFT = {"vit.fc_norm.bias", "neck.running_mean"}


def logged(out):
    """Step -> loss, from TensorBoard's file."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (file,) = (out / "reid").glob("events.out.tfevents.*")  # those of options lie deeper
    events = EventAccumulator(str(file.parent)).Reload()
    tags = events.Tags()
    return {e.step: e.value for e in events.Scalars("loss")}, tags


@pytest.mark.examples
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
def test_two_processes_have_the_same_loss(folder, tmp_path):
    changes = {"tracker": "tensorboard", "encoding": "learned+human_part", "patch_weight": 0.5}
    changes |= {"freeze": 1, "center_weight": 0.01, "circle_weight": 0.01, "layer_decay": 0.8}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run(folder, tmp_path / "one", **changes)
    run(folder, tmp_path / "two", *launcher, **changes)
    one, two = (json.loads((tmp_path / n / SCORES).read_text()) for n in ("one", "two"))
    assert one["queries"] == two["queries"] == 8
    assert one["mAP"] == pytest.approx(two["mAP"], abs=0.1)  # ranks of a near-tie may change
    (one, tags), (two, _) = (logged(tmp_path / name) for name in ("one", "two"))
    assert list(one) == [1, 2, 3]
    assert one == pytest.approx(two, rel=1e-4)
    assert {"rollout", "bias of the center"} <= set(tags["images"])
    first, second = (weights(tmp_path / name) for name in ("one", "two"))
    for name in first.keys() - ONLY_SHIFT:
        torch.testing.assert_close(second[name], first[name], atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.examples
def test_weights_and_biases_without_a_network(folder, tmp_path):
    pytest.importorskip("wandb")
    offline = {**ONE_THREAD, "WANDB_MODE": "offline"}
    done = subprocess.run(
        command(folder, tmp_path / "out", tracker="wandb"),
        env=offline,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("out/wandb/offline-run-*/*.wandb"))
    assert not (tmp_path / "wandb").exists()
