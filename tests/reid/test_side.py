"""Side information: cameras and views that are told to the network, and unknown ones."""

import dataclasses
import json
import shutil

import evaluate
import pytest
import tiny_reid
import torch
from data.batches import photo_loader
from data.market import NO_VIEW, read_dataset
from data.sides import known_sides, sides_of
from model.network import build_network, parameter_groups
from model.side import SideInformation
from search.features import embed_photos
from training import run as training
from training.checkpoints import load_network, load_start
from training.photos import list_photos
from training.run import train


def network_with(sie="camera+view", cameras=(1, 4, 6), views=(0, 2), **changes):
    config = tiny_reid.config(sie=sie, **changes)
    return build_network(config, 5, cameras=cameras, views=views).eval()


def test_rows_of_known_and_unknown():
    side = SideInformation(3, (1, 4, 6), (0, 2), scale=2.0)
    assert side.table.std() > 0.005
    table = side.table.data.normal_()
    expected = {
        (4, 2): table[1, 1],
        (6, 0): table[2, 0],
        (5, 2): table[:, 1].mean(0),
        (1, -1): table[0].mean(0),
        (9, 9): table.mean((0, 1)),
    }
    found = side(torch.tensor(list(expected)))
    assert found.shape == (5, 1, 3)
    torch.testing.assert_close(found[:, 0], 2 * torch.stack(list(expected.values())))


@pytest.mark.parametrize(("cameras", "views"), [((3, 7), ()), ((), (0, 1))])
def test_one_kind_alone(cameras, views):
    side = SideInformation(3, cameras, views, scale=1.0)
    rows = side.rows(torch.tensor([(7, 1), (3, 0), (2, 5)]))
    table = side.table.flatten(0, 1)
    torch.testing.assert_close(rows, torch.stack([table[1], table[0], table.mean(0)]))


@pytest.mark.parametrize("encoding", ["none", "learned+peg"])
@pytest.mark.parametrize("registers", [0, 2])
def test_it_joins_the_positions_of_all_tokens(encoding, registers):
    vit_args = json.dumps({**tiny_reid.VIT, "pos_embed": "learn", "reg_tokens": registers})
    network = network_with(encoding=encoding, vit_args=vit_args)
    images, sides = torch.randn(3, 3, 32, 16), torch.tensor([(1, 0), (6, 2), (6, 0)])
    seen = []
    hook = network.vit.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    network.vit.forward_features(images)
    found, _ = network.tokens(images, sides)
    hook.remove()
    torch.testing.assert_close(seen[1], seen[0] + network.sie(sides))
    assert seen[0].shape[1] == 1 + registers + 8
    assert not torch.allclose(found, network.vit.forward_features(images))


def test_without_sides_all_is_unknown():
    network = network_with()
    images = torch.randint(0, 256, (2, 3, 32, 16), dtype=torch.uint8)
    network.sie.table.data.normal_()
    assert torch.equal(network(images), network(images, torch.full((2, 2), 99)))
    assert not torch.allclose(network(images), network(images, torch.tensor([(1, 0), (4, 2)])))


def test_rows_have_no_decay():
    network, config = network_with(), tiny_reid.config(sie="camera")
    (group,) = (
        group
        for group in parameter_groups(network, config)
        if any(p is network.sie.table for p in group["params"])
    )
    assert group["weight_decay"] == 0


def test_other_models():
    rule = "--sie needs a plain vision transformer of timm, and this is a Beit"
    vit_args = '{"depth": 1, "embed_dim": 32, "num_heads": 2}'
    with pytest.raises(ValueError, match=rule):
        network_with(vit="beit_base_patch16_224", vit_args=vit_args)


# Data


def test_views_of_photos(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "data")
    (tmp_path / "data" / "views.csv").unlink()
    plain = read_dataset(tmp_path / "data")
    assert {photo.view for photo in plain.train} == {NO_VIEW}
    with pytest.raises(ValueError, match=r"--sie view needs views, .*: write views\.csv into"):
        known_sides(plain.train, "view")
    lines = [f"{photo.path.name},{7 * i}" for i, photo in enumerate(plain.train[:2])]
    (tmp_path / "data" / "views.csv").write_text("\n".join(["photo,view", *lines]))
    data = read_dataset(tmp_path / "data")
    assert [photo.view for photo in data.train[:3]] == [0, 7, NO_VIEW]
    assert known_sides(data.train, "camera+view") == {"cameras": [1, 2], "views": [0, 7]}
    assert known_sides(data.train, "camera") == {"cameras": [1, 2], "views": []}
    assert known_sides(data.train, "none") == {"cameras": [], "views": []}
    cameras = [photo.camera for photo in data.train[:3]]
    assert sides_of(data.train[:3]).T.tolist() == [cameras, [0, 7, NO_VIEW]]


@pytest.mark.parametrize(
    "text", ["photo,side\na.jpg,1", "photo,view\na.jpg,left", "photo,view\na,-2"]
)
def test_views_that_are_none(folder, tmp_path, text):
    shutil.copytree(folder, tmp_path / "data")
    (tmp_path / "data" / "views.csv").write_text(text)
    with pytest.raises(ValueError, match=r"views\.csv must begin with photo,view and have a name"):
        read_dataset(tmp_path / "data")


# Trainings


@pytest.fixture(scope="module")
def told(data, tmp_path_factory):
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("told")
    train(tiny_reid.config(sie="camera", epochs=1), data, out, quiet=True)
    return out


def test_the_search_tells_each_photo_its_camera(data, told):
    network = load_network(told)
    assert network.sie.cameras.tolist() == [1, 2]
    network.sie.table.data.normal_()
    (images, at), *_ = photo_loader(data.query, (32, 16))
    sides = torch.tensor([(data.query[i].camera, NO_VIEW) for i in at])
    with torch.inference_mode():
        expected = network(images, sides)
    torch.testing.assert_close(embed_photos(network, data.query, (32, 16)), expected)
    unknown = embed_photos(network, data.query, (32, 16), are_cameras_known=False)
    assert not torch.allclose(unknown, expected)
    with torch.inference_mode():
        mirrored = network(images.flip(-1), sides)
    both = embed_photos(network, data.query, (32, 16), flip=True)
    torch.testing.assert_close(both, (expected + mirrored) / 2)


def test_steps_tell_each_photo_its_camera(data, tmp_path):
    step = training.Run(tiny_reid.config(sie="camera"), data, tmp_path, quiet=True)
    told = []
    step.network.sie.register_forward_pre_hook(lambda _, args: told.append(args[0]))
    images, indices = next(iter(step.batches))
    step.step(images, indices)
    assert told[0][:, 0].tolist() == [data.train[i].camera for i in indices]


@pytest.mark.parametrize("sie", ["view", "camera+view"])
def test_generated_people_have_views(data, tmp_path, sie):
    config = tiny_reid.config(sie=sie, epochs=1)
    train(config, data, tmp_path, quiet=True)
    network = load_network(tmp_path)
    assert network.sie.views.tolist() == [0, 1, 2]
    assert len(network.sie.table) == (2 if "camera" in sie else 1)
    known, unknown = (
        embed_photos(network, data.query, config.size, are_cameras_known=is_known)
        for is_known in (True, False)
    )
    assert not torch.allclose(known, unknown)


def test_whose_cameras(data, told):
    assert evaluate.which_cameras(told, data) == "trained"
    others = dataclasses.replace(data, train=data.query)
    assert evaluate.which_cameras(told, others) == "unknown"
    asked = dataclasses.replace(data, train=())
    with pytest.raises(ValueError, match="the same: pass --cameras trained or unknown"):
        evaluate.which_cameras(told, asked)
    assert evaluate.which_cameras(told, asked, "trained") == "trained"


def test_evaluation_says_whose_cameras(data, folder, told, tmp_path, monkeypatch, capsys):
    def said(*words):
        monkeypatch.setattr("sys.argv", ["evaluate.py", str(told), "--data", str(folder), *words])
        evaluate.main()
        return json.loads(capsys.readouterr().out)

    words = "--json", "--out", str(tmp_path)
    first, second = said(*words), said(*words, "--cameras", "unknown")
    assert (first["cameras"], second["cameras"]) == ("trained", "unknown")
    for report in (first, second):
        scores = evaluate.evaluate(told, data, cameras=report["cameras"])
        assert report["mAP"] == scores.mean_average_precision


def started(told, data, cameras):
    config = tiny_reid.config(sie="camera", start_from=str(told))
    network = build_network(config, 8, cameras=cameras)
    load_start(network, config, list_photos(data.train))
    return network.sie.table[:, 0]


def test_a_training_with_more_cameras(data, told):
    known = load_network(told).sie.table[:, 0]
    rows = started(told, data, cameras=(2, 3))
    torch.testing.assert_close(rows, torch.stack([known[1], known.mean(0)]))


def test_cameras_of_other_data_are_others(data, told):
    known = load_network(told).sie.table[:, 0]
    strangers = dataclasses.replace(data, train=data.query)
    rows = started(told, strangers, cameras=(1, 2, 3))
    torch.testing.assert_close(rows, known.mean(0).expand(3, -1))
