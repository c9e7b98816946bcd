"""Trainings with parts, side information, overlapping patches and both features."""

import json

import evaluate
import pictures
import pytest
import tiny_reid
import torch
from model.network import build_network
from search.features import embed_photos
from training import run as training
from training.checkpoints import load_network, load_start
from training.config import Config, load_config
from training.photos import list_photos
from training.run import SCORES, train
from trainings import equal, weights


@pytest.fixture(scope="module")
def with_parts(data, tmp_path_factory):
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("parts")
    train(tiny_reid.config(**tiny_reid.PARTS, epochs=1), data, out, quiet=True)
    return out


def test_trained_loaded_and_evaluated(data, with_parts):
    known = json.loads((with_parts / SCORES).read_text())
    assert evaluate.evaluate(with_parts, data).mean_average_precision == known["mAP"]
    network = load_network(with_parts)
    assert embed_photos(network, data.query, (32, 16)).shape == (8, 2 * 24 + 2 * 24)
    assert network.vit.patch_embed.grid_size == (5, 2)


def test_pictures_are_drawn(data, with_parts, tmp_path):
    album = pictures.open_album(with_parts, data)
    written = pictures.draw(album, tmp_path, ["rank10", "rollout", "similarity"])
    assert [path.stem for path in written] == ["rank10", "rollout", "similarity"]


def test_another_training_starts_from_it(data, with_parts):
    config = tiny_reid.config(**tiny_reid.PARTS, start_from=str(with_parts), seed=3)
    network = build_network(config, 8, cameras=(1, 2))
    assert load_start(network, config, list_photos(data.train)) == 8
    assert equal(network.state_dict(), weights(with_parts))


def test_records_of_older_trainings(with_parts):
    path = with_parts / "config.json"
    record = json.loads(path.read_text())
    for name in (*tiny_reid.PARTS, "sie_scale", "shift", "groups", "part_weight", "table_resize"):
        record.pop(name)
    (with_parts / "old").mkdir()
    (with_parts / "old" / "config.json").write_text(json.dumps(record))
    old = load_config(with_parts / "old")
    assert (old.stride, old.sie, old.parts, old.pool) == (0, "none", "none", Config().pool)


@pytest.mark.parametrize("parts", ["jigsaw", "stripes"])
def test_the_loss_of_parts(data, tmp_path, parts):
    """The mean over parts; the triplets of stripes are not asked for."""
    config = tiny_reid.config(parts=parts, num_parts=3, part_weight=0.5, smoothing=0.0)
    step = training.Run(config, data, tmp_path, quiet=True)
    step.network.train()
    images, indices = next(iter(step.batches))
    seen = step.network(images)
    losses, people = step.losses(seen, indices), step.labels[indices]
    expected = sum(
        torch.nn.functional.cross_entropy(logits, people)
        + (parts == "jigsaw") * step.triplet(features, people)
        for features, logits in seen.parts
    )
    torch.testing.assert_close(losses["parts"], 0.5 * expected / 3)
    parts_of_sum = [value for name, value in losses.items() if name != "loss"]
    torch.testing.assert_close(losses["loss"], torch.stack(parts_of_sum).sum())


def test_the_cls_token_and_then_the_mean():
    network = build_network(tiny_reid.config(pool="token+avg", encoding="learned"), 5).eval()
    network.vit.norm.weight.data.normal_()
    tokens, _ = network.tokens(torch.randn(2, 3, 32, 16), None)
    expected = torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], dim=1)
    torch.testing.assert_close(network.pooled(tokens), expected)
    assert torch.equal(tokens, network.vit.norm(tokens)) is False
    images = torch.randint(0, 256, (2, 3, 32, 16), dtype=torch.uint8)
    assert network(images).shape == (2, 48)
    assert network.train()(images).logits.shape == (2, 5)


def test_no_cls_token():
    vit_args = json.dumps({**tiny_reid.VIT, "class_token": False})
    with pytest.raises(ValueError, match=r"timm does not build vit.* so: Token pooling needs"):
        build_network(tiny_reid.config(vit_args=vit_args, pool="token+avg"), 5)
    beit = {
        "vit": "beit_base_patch16_224",
        "vit_args": '{"depth": 1, "embed_dim": 32, "num_heads": 2}',
    }
    network = build_network(tiny_reid.config(**beit, pool="token+avg"), 5).eval()
    assert network(torch.zeros(1, 3, 32, 16, dtype=torch.uint8)).shape == (1, 64)
