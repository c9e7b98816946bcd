"""A training that begins from another, that becomes longer, or whose photos have changed."""

import dataclasses
import shutil

import options
import pytest
import tiny_reid
import torch
from data.market import read_dataset
from model.network import build_network
from training import run as training
from training.checkpoints import load_network, load_start
from training.config import Config, load_config, parse
from training.photos import list_photos
from training.run import train
from trainings import equal, weights

SIZES = [(32, 16), (48, 16)]


def started(trained, **changes):
    model = load_config(trained).model
    return tiny_reid.config(**{**model, "start_from": str(trained), **changes})


# Photos


def test_other_pixels_under_the_same_names(folder, trained, tmp_path):
    shutil.copytree(folder, tmp_path / "data")
    photo = sorted((tmp_path / "data" / "bounding_box_train").iterdir())[5]
    content = bytearray(photo.read_bytes())
    content[-20] ^= 1  # as long as before
    photo.write_bytes(content)
    with pytest.raises(ValueError, match=rf"other photos than these 32 \(.*differ: {photo.name}\)"):
        train(tiny_reid.config(), read_dataset(tmp_path / "data"), trained, quiet=True)


def test_a_copy_of_the_photos_is_the_same(folder, trained, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path / "data")
    shutil.copytree(trained, tmp_path / "run")
    monkeypatch.setattr(training.Run, "step", None)
    train(tiny_reid.config(), read_dataset(tmp_path / "data"), tmp_path / "run", quiet=True)


def test_nobody_knows_the_photos(data, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / "data.sha256").unlink()
    with pytest.raises(FileNotFoundError, match=r"data\.sha256 is missing, which tells whether"):
        train(tiny_reid.config(), data, tmp_path / "run", quiet=True)


def test_an_older_version_did_not_look_at_pixels(data, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / "data.sha256").write_text("0" * 64)
    with pytest.raises(ValueError, match=r"data\.sha256 is of an older version"):
        train(tiny_reid.config(), data, tmp_path / "run", quiet=True)


# More epochs


def test_more_epochs_go_on(data, trained, tmp_path, monkeypatch, capsys):
    shutil.copytree(trained, tmp_path / "run")
    rates, one_epoch = [], training.Run.one_epoch
    monkeypatch.setattr(
        training.Run,
        "one_epoch",
        lambda run, *rest: rates.append(run.rate) or one_epoch(run, *rest),
    )
    config = tiny_reid.config(epochs=5)
    train(config, data, tmp_path / "run")
    said = capsys.readouterr().out
    share = training.warm_cosine(config, 4)
    assert rates == [config.learning_rate * share(4 * epoch) for epoch in (3, 4)]
    assert "3 epochs become 5: on after 3, with the learning rate that 5 epochs have" in said
    assert not equal(weights(tmp_path / "run"), weights(trained))
    assert load_config(tmp_path / "run").epochs == 5
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["epoch-00005"]
    with pytest.raises(ValueError, match=r"another training \(epochs 5 -> 3\)"):
        train(tiny_reid.config(), data, tmp_path / "run", quiet=True)


def test_two_epochs_are_no_error():
    config = Config(epochs=2)
    share = training.warm_cosine(config, 10)
    assert config.warm_epochs == 1
    assert [share(0), share(9), share(10)] == [pytest.approx(0.1), 1, 1]
    assert Config(epochs=1).warm_epochs == 0
    assert training.warm_cosine(Config(epochs=1), 10)(0) == 1
    assert Config(epochs=24).warm_epochs == 3


# From another training


def test_the_weights_of_another_training(data, trained):
    config = started(trained, seed=5)
    network = build_network(config, 8)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert load_start(network, config, list_photos(data.train)) == 8
    assert equal(network.state_dict(), weights(trained))
    assert not torch.equal(network.classifier.weight, before["classifier.weight"])


def test_rows_of_the_classifier_follow_the_people(data, trained):
    """Two are left out, one has another number, and one more has only the number of another."""
    kept = [p for p in data.train if p.person not in (2, 5)]
    renamed = [dataclasses.replace(p, person=40 if p.person == 3 else p.person) for p in kept]
    stranger = [dataclasses.replace(p, person=2) for p in data.query[:2]]
    photos = (*renamed, *stranger)
    config = started(trained)
    network = build_network(config, 7)
    fresh = network.classifier.weight.clone()
    assert load_start(network, config, list_photos(photos)) == 6
    known = weights(trained)["classifier.weight"]  # of 1 to 8
    rows = dict(zip((1, 2, 4, 6, 7, 8, 40), network.classifier.weight, strict=True))
    for person, before in {1: 1, 4: 4, 6: 6, 7: 7, 8: 8, 40: 3}.items():
        assert torch.equal(rows[person], known[before - 1])
    assert torch.equal(rows[2], fresh[1])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("encoding", ["learned+human_part", "none"])
def test_crops_of_another_size(data, tmp_path, size, encoding):
    """A training that starts from another can be loaded, and gives what it was trained to give."""
    train(tiny_reid.config(encoding=encoding, epochs=1), data, tmp_path / "first", quiet=True)
    config = started(tmp_path / "first", height=size[0], width=size[1], epochs=1, learning_rate=0.0)
    with pytest.warns(UserWarning, match="a learning rate of 0 trains nothing"):
        train(config, data, tmp_path / "second", quiet=True)
    images = torch.randint(0, 256, (3, 3, *size), dtype=torch.uint8)
    first = load_network(tmp_path / "first", size=size)
    second = load_network(tmp_path / "second")
    first.neck = second.neck  # whose statistics follow the photos
    with torch.no_grad():
        torch.testing.assert_close(second(images), first(images))
    again = build_network(started(tmp_path / "second"), 8)
    assert load_start(again, started(tmp_path / "second"), list_photos(data.train)) == 8


def test_another_training_with_another_model(data, trained, tmp_path):
    config = started(trained, encoding="swin")
    with pytest.raises(ValueError, match=r"another model \(encoding 'learned\+hum.*' -> 'swin'\)"):
        train(config, data, tmp_path / "out", quiet=True)


def test_its_model_is_the_default(trained):
    def parsed(*words):
        parser = options.Parser("")
        options.add_fields(parser, Config)
        return parse(parser, words)[1]

    before, config = load_config(trained), parsed("--start", str(trained), "--epochs", "7")
    assert config.model == before.model
    assert (config.epochs, config.size) == (7, before.size)
    taller = parsed("--start", str(trained), "--height", "64")
    assert (taller.size, taller.table_size) == ((64, 16), before.size)
    assert parsed("--start", str(trained), "--encoding", "swin").encoding == "swin"


@pytest.mark.slow
def test_started_and_resumed(data, folder, trained, tmp_path, monkeypatch):
    """What it starts from is read once, and from then on its own checkpoint."""
    config = started(trained, epochs=2)
    whole = train(config, data, tmp_path / "whole", quiet=True)
    assert not equal(weights(tmp_path / "whole"), weights(trained))
    save = training.save_checkpoint

    def saved(accelerator, out, epoch):
        save(accelerator, out, epoch)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "save_checkpoint", saved)
    with pytest.raises(KeyboardInterrupt):
        train(config, data, tmp_path / "halved", quiet=True)
    monkeypatch.setattr(training, "save_checkpoint", save)
    monkeypatch.setattr(training, "load_start", None)
    again = train(config, data, tmp_path / "halved", quiet=True)
    assert equal(weights(tmp_path / "halved"), weights(tmp_path / "whole"))
    assert torch.equal(again.average_precision, whole.average_precision)
