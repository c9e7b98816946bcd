"""Training: resumed after a kill, in two processes, watched; and what stops it."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import timm
import tiny_reid
import torch
import train as training
from batches import UnreadableImageError, training_labels
from checkpoints import WEIGHTS, load_network, load_newest
from config import Config, load_config
from losses import batch_hard_triplet, identity_loss
from market import Splits, read_dataset
from network import build_network, parameter_groups
from safetensors.torch import load_file
from train import SCORES, train

import posenc

SCRIPT = Path(training.__file__)
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def command(folder, out, *launcher, **changes):
    options = []
    for name, value in dataclasses.asdict(tiny_reid.config(**changes)).items():
        if isinstance(value, bool):
            options.append(f"--{'' if value else 'no-'}{name.replace('_', '-')}")
        else:
            options += [f"--{name.replace('_', '-')}", str(value)]
    return [sys.executable, *launcher, str(SCRIPT), str(out), "--data", str(folder), *options]


def run(*args, **changes):
    done = subprocess.run(
        command(*args, **changes), env=ONE_THREAD, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


def weights(out):
    return load_file(out / WEIGHTS)


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    torch.set_num_threads(1)  # sums differ with their number
    out = tmp_path_factory.mktemp("trained")
    train(tiny_reid.config(), data, out, quiet=True)
    return out


def test_the_same_twice(data, trained, tmp_path):
    torch.manual_seed(7)
    scores = train(tiny_reid.config(), data, tmp_path, quiet=True)
    assert equal(weights(tmp_path), weights(trained))
    report = json.loads((trained / SCORES).read_text())
    assert report["mAP"] == scores.mean_average_precision
    assert report["queries"] == len(data.query)
    assert 0 <= report["waiting"] <= 1


def test_it_learns(data, tmp_path):
    """On the people of the training themselves."""
    seen = Splits(data.train, data.train[::2], data.train[1::2])
    few = tiny_reid.config(epochs=2, learning_rate=0.0)
    many = tiny_reid.config(epochs=80, people=8, learning_rate=3e-3)
    before = train(few, seen, tmp_path / "few", quiet=True)
    after = train(many, seen, tmp_path / "many", quiet=True)
    assert after.mean_average_precision > before.mean_average_precision + 0.2


def test_encodings_are_trained_with_their_own_rate(data):
    config = tiny_reid.config(encoding="swin+learned", encoding_rate=7.0)
    network = build_network(config, 8)
    matrices, vectors, encodings = parameter_groups(network, config)
    named = dict(posenc.encoding_parameters(network.vit))
    assert {id(p) for p in encodings["params"]} == {id(p) for p in named.values()}
    assert encodings["lr"] == 7 * config.learning_rate == 7 * matrices["lr"] == 7 * vectors["lr"]
    assert encodings["weight_decay"] == vectors["weight_decay"] == 0 < matrices["weight_decay"]
    assert all(p.dim() > 1 for p in matrices["params"])
    grouped = [id(p) for g in (matrices, vectors, encodings) for p in g["params"]]
    assert sorted(grouped) == sorted(id(p) for p in network.parameters() if p.requires_grad)


def test_same_first_weights_for_all_encodings():
    plain = build_network(tiny_reid.config(encoding="none"), 8).state_dict()
    for encoding in ("learned", "irpe+human_part"):
        own = build_network(tiny_reid.config(encoding=encoding), 8).state_dict()
        assert all(torch.equal(own[name], value) for name, value in plain.items())


def test_the_head_is_bnneck():
    network = build_network(tiny_reid.config(), 5).train()
    images = torch.randint(0, 256, (6, 3, 32, 16), dtype=torch.uint8)
    seen = network(images)
    assert seen.features.shape == (6, 24)
    assert seen.patches.shape == (6, 8, 24)
    centered = torch.nn.functional.batch_norm(seen.features, None, None, training=True)
    expected = (centered * network.neck.weight) @ network.classifier.weight.T
    torch.testing.assert_close(seen.logits, expected)
    assert not network.neck.bias.requires_grad
    found = network.eval()(images)
    assert not torch.allclose(found, seen.features)  # running statistics, after the norm


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


def test_killed_and_resumed(folder, tmp_path):
    """Equal, bit for bit, to a training that nothing interrupted."""
    changes = {"epochs": 60, "encoding": "irpe+peg"}
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


def logged(out):
    """Step -> loss, from TensorBoard's file."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (file,) = (out / "reid").glob("events.out.tfevents.*")  # those of options lie deeper
    events = EventAccumulator(str(file.parent)).Reload()
    tags = events.Tags()
    return {e.step: e.value for e in events.Scalars("loss")}, tags


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
def test_two_processes_have_the_same_loss(folder, tmp_path):
    changes = {"tracker": "tensorboard", "encoding": "learned+human_part", "patch_weight": 0.5}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run(folder, tmp_path / "one", **changes)
    done = subprocess.run(
        command(folder, tmp_path / "two", *launcher, **changes),
        env=ONE_THREAD,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / n / SCORES).read_text()) for n in ("one", "two"))
    assert one["queries"] == two["queries"] == 8
    assert one["mAP"] == pytest.approx(two["mAP"], abs=0.1)  # ranks of a near-tie may change
    (one, tags), (two, _) = (logged(tmp_path / name) for name in ("one", "two"))
    assert list(one) == [1, 2, 3]
    assert one == pytest.approx(two, rel=1e-4)
    assert {"rollout", "bias of the center"} <= set(tags["images"])
    first, second = (weights(tmp_path / name) for name in ("one", "two"))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, atol=2e-3, rtol=1e-2, msg=name)


def test_weights_and_biases_without_a_network(folder, tmp_path):
    pytest.importorskip("wandb")
    offline = {**ONE_THREAD, "WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path)}
    done = subprocess.run(
        command(folder, tmp_path / "out", tracker="wandb"),
        env=offline,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


def test_sixteen_bits(folder, tmp_path):
    run(folder, tmp_path, precision="bf16")
    assert 0 < json.loads((tmp_path / SCORES).read_text())["mAP"] <= 1
    assert {value.dtype for value in weights(tmp_path).values()} == {torch.float32, torch.int64}


@pytest.mark.parametrize("pool", ["token", "avg"])
@pytest.mark.parametrize("size", [(128, 64), (256, 128), (384, 128)])
def test_any_vit_and_size(pool, size):
    config = Config(
        vit="deit3_small_patch16_224",
        vit_args='{"depth": 1, "embed_dim": 24, "num_heads": 2}',
        encoding="irpe",
        height=size[0],
        width=size[1],
        pool=pool,
    )
    network = build_network(config, 4).eval()
    assert network(torch.zeros(2, 3, *size, dtype=torch.uint8)).shape == (2, 24)
    (layout,) = {one.layout for one in posenc.patched_encodings(network.vit).values()}
    assert layout.grid == (size[0] // 16, size[1] // 16)


def test_pretrained_weights_from_a_file(tmp_path):
    """Of square images; the model's own table of positions is resampled, and kept."""
    vit = {"depth": 1, "embed_dim": 24, "num_heads": 2}
    pretrained = timm.create_model("vit_tiny_patch16_224", img_size=64, **vit)
    torch.nn.init.normal_(pretrained.pos_embed)
    torch.save(pretrained.state_dict(), tmp_path / "vit.pth")
    config = Config(
        vit_args=json.dumps(vit),
        weights=str(tmp_path / "vit.pth"),
        encoding="human_part",
        pool="token",
        height=256,
        width=128,
    )
    own = build_network(config, 4).vit
    for name, value in pretrained.state_dict().items():
        if not name.startswith(("head", "pos_embed")):
            torch.testing.assert_close(own.state_dict()[name], value)
    assert own.pos_embed.shape == (1, 1 + 16 * 8, 24)
    torch.testing.assert_close(own.pos_embed[:, 0], pretrained.pos_embed[:, 0])


def test_a_finished_training_is_not_trained_again(data, trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path / "copy")
    monkeypatch.setattr(training.Run, "step", None)
    scores = train(tiny_reid.config(), data, tmp_path / "copy", quiet=True)
    assert equal(weights(tmp_path / "copy"), weights(trained))
    assert scores.mean_average_precision == json.loads((trained / SCORES).read_text())["mAP"]


def test_pretrained_weights_have_their_own_normalisation():
    vit = '{"depth": 1, "embed_dim": 24, "num_heads": 2}'
    config = Config(vit_args=vit, pretrained=True, height=32, width=16)
    network = build_network(config, 4, load_pretrained=False)
    assert network.std.flatten().tolist() == [0.5, 0.5, 0.5]  # of timm's vit_tiny
    assert build_network(tiny_reid.config(), 4).std.flatten()[0] == pytest.approx(0.229)


# What stops it


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


@pytest.mark.parametrize(
    ("change", "error", "rule"),
    [
        ({"vit": "resnet18"}, ValueError, "resnet18 with .* is no vision transformer"),
        ({"vit_args": '{"num_classes": 3}'}, ValueError, "multiple values"),
        ({"weights": "nowhere.pth"}, FileNotFoundError, "no file of weights at nowhere.pth"),
        ({"height": 36}, ValueError, "patches of 8 pixels do not fill images of 36x16"),
    ],
)
def test_models_that_cannot_be_built(change, error, rule):
    with pytest.raises(error, match=rule):
        build_network(tiny_reid.config(**change), 4)


@pytest.mark.parametrize("name", ["network.safetensors", "config.json"])
@pytest.mark.parametrize("content", [b"", b"{}"])
def test_spoiled_files_are_named(trained, tmp_path, name, content):
    shutil.copytree(trained, tmp_path / "copy")
    (tmp_path / "copy" / name).write_bytes(content)
    if (name, content) == ("config.json", b"{}"):
        content = b'{"colour": 3}'
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
        ({"warmup_epochs": 3}, "warmup_epochs must be fewer than epochs, got 3 of 3"),
        ({"vit_args": "depth=3"}, "vit_args must be JSON"),
        ({"encoding_args": "[1]"}, "encoding_args must be an object"),
        ({"triplet": "hard"}, 'triplet must be a margin or "soft"'),
        ({"precision": "half"}, "precision must be one of no, fp16, bf16"),
        ({"tracker": "paper"}, "tracker must be one of tensorboard, wandb, none"),
        ({"clip": 0.0}, r"clip must be positive, got 0\.0"),
        ({"checkpoint_every": 0}, "checkpoint_every must be positive, got 0"),
        ({"people": 1}, "people and photos must be at least 2, got 1 and 2"),
    ],
)
def test_bad_options(change, rule):
    with pytest.raises(ValueError, match=rule):
        tiny_reid.config(**change)


def test_the_rate_rises_and_falls():
    share = training.warm_cosine(tiny_reid.config(epochs=4), 10)
    assert share(0) == pytest.approx(0.1)
    assert share(9) == share(10) == 1
    assert share(25) == pytest.approx(0.5)
    assert share(39) < 0.01
