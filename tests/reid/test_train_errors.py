"""What stops a training, and folders that are not its own."""

import dataclasses
import json
import shutil

import pytest
import tiny_reid
import torch
from data.batches import UnreadableImageError
from data.market import read_dataset
from training import run as training
from training.checkpoints import WEIGHTS, load_network
from training.config import load_config
from training.run import train
from trainings import equal, weights


def test_a_photo_of_the_test_that_is_corrupt(folder, tmp_path):
    """The training is not lost."""
    shutil.copytree(folder, tmp_path / "data")
    query = next((tmp_path / "data" / "query").iterdir())
    whole = query.read_bytes()
    query.write_bytes(whole[:100])
    config = tiny_reid.config(checkpoint_every=10, evaluate_every=10)
    with pytest.raises(UnreadableImageError, match=query.name):
        train(config, read_dataset(tmp_path / "data"), tmp_path / "out", quiet=True)
    assert (tmp_path / "out" / "checkpoints" / "epoch-00003").is_dir()
    query.write_bytes(whole)
    train(config, read_dataset(tmp_path / "data"), tmp_path / "out", quiet=True)
    assert (tmp_path / "out" / WEIGHTS).is_file()


def test_a_gradient_that_is_not_finite(data, tmp_path, monkeypatch):
    """With a loss that is: it must not reach the weights."""
    step = training.Run(tiny_reid.config(), data, tmp_path, quiet=True)
    batch = next(iter(step.batches))
    before = {n: p.clone() for n, p in step.network.named_parameters()}
    step.network.classifier.weight.register_hook(lambda grad: grad * float("nan"))
    with pytest.raises(FloatingPointError, match="norm of the gradient nan"):
        step.step(*batch)
    assert all(torch.equal(p, before[n]) for n, p in step.network.named_parameters())


def test_no_query_has_an_answer(data, tmp_path):
    lonely = dataclasses.replace(data, gallery=data.gallery[:2])  # distractors
    with pytest.raises(ValueError, match="none of 8 queries has a photo of its person by another"):
        train(tiny_reid.config(), lonely, tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()


def test_a_failed_start_does_not_lock_its_folder(data, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "identity_loss", lambda *_: torch.tensor(float("nan")))
    with pytest.raises(FloatingPointError):
        train(tiny_reid.config(), data, tmp_path, quiet=True)
    monkeypatch.undo()
    torch.set_num_threads(1)
    train(tiny_reid.config(learning_rate=1e-4), data, tmp_path, quiet=True)


@pytest.mark.parametrize("name", ["network.safetensors", "config.json"])
@pytest.mark.parametrize("content", [b"", b"{}"])
def test_spoiled_files_are_named(trained, tmp_path, name, content):
    shutil.copytree(trained, tmp_path / "copy")
    (tmp_path / "copy" / name).write_bytes(content)
    if (name, content) == ("config.json", b"{}"):
        content = b'{"color": 3}'
        (tmp_path / "copy" / name).write_bytes(content)
    with pytest.raises(ValueError, match=name):
        load_network(tmp_path / "copy")


def test_a_spoiled_checkpoint_is_named(data, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "copy")
    (checkpoint,) = (tmp_path / "copy" / "checkpoints").iterdir()
    (checkpoint / "optimizer.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"epoch-00003 cannot be read"):
        train(tiny_reid.config(), data, tmp_path / "copy", quiet=True)


def test_a_loss_that_is_not_finite(data, tmp_path, monkeypatch):
    config = tiny_reid.config()
    train(dataclasses.replace(config, epochs=2), data, tmp_path, quiet=True)
    kept = (tmp_path / "checkpoints").rglob("*.safetensors")
    before = {path: path.read_bytes() for path in kept}
    assert before
    shutil.copy(tmp_path / "config.json", tmp_path / "config.bak")
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    monkeypatch.setattr(training, "identity_loss", lambda *_: torch.tensor(float("nan")))
    with pytest.raises(FloatingPointError, match=r"not finite .*identity nan.*000\d_c\ds1_.*jpg"):
        train(config, data, tmp_path, quiet=True)
    assert {path: path.read_bytes() for path in before} == before


def test_a_folder_of_another_training(data, trained):
    before = weights(trained)
    with pytest.raises(ValueError, match=r"another training \(encoding '.*' -> 'swin'\)"):
        train(tiny_reid.config(encoding="swin"), data, trained, quiet=True)
    assert equal(weights(trained), before)
    assert load_config(trained).encoding == "learned+human_part"


def test_other_people_than_before(data, trained):
    fewer = dataclasses.replace(data, train=data.train[:-4])
    with pytest.raises(ValueError, match="was trained on other photos than these 28"):
        train(tiny_reid.config(), fewer, trained, quiet=True)


def test_weights_of_another_model(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "copy")
    other = tiny_reid.config(encoding="irpe")
    (tmp_path / "copy" / "config.json").write_text(json.dumps(dataclasses.asdict(other)))
    with pytest.raises(ValueError, match="does not fit the model of"):
        load_network(tmp_path / "copy")


def test_no_training(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no training in .*: expected .*config.json"):
        load_network(tmp_path)


def test_a_training_that_is_not_finished(trained, tmp_path):
    shutil.copy(trained / "config.json", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"is not finished: no .*network\.safetensors"):
        load_network(tmp_path)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"pool": "max"}, "pool must be one of token, avg"),
        ({"warmup_epochs": -1}, "warmup_epochs must be at least 0, got -1"),
        ({"vit_args": "depth=3"}, "vit_args must be JSON"),
        ({"encoding_args": "[1]"}, "encoding_args must be an object"),
        ({"triplet": "hard"}, 'triplet must be a margin or "soft"'),
        ({"triplet": "-0.3"}, r"no less than 0, got '-0\.3'"),
        ({"precision": "half"}, "precision must be one of no, fp16, bf16"),
        ({"tracker": "paper"}, "tracker must be one of tensorboard, wandb, none"),
        ({"clip": 0.0}, r"clip must be greater than 0, got 0\.0"),
        ({"checkpoint_every": 0}, "checkpoint_every must be at least 1, got 0"),
        ({"people": 1}, "people must be at least 2, got 1"),
        ({"learning_rate": -1.0}, r"learning_rate must be at least 0, got -1\.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be finite, got nan"),
        ({"smoothing": 2.0}, r"smoothing must be less than 1, got 2\.0"),
        ({"workers": -1}, "workers must be at least 0, got -1"),
    ],
)
def test_bad_options(change, rule):
    with pytest.raises(ValueError, match=rule):
        tiny_reid.config(**change)
