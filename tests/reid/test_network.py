"""The network of the training: head, groups of parameters, pretrained weights."""

import json

import pytest
import timm
import tiny_reid
import torch
from model.network import build_network, parameter_groups
from training.config import Config

import posenc


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


def test_pretrained_weights_have_their_own_normalization():
    vit = '{"depth": 1, "embed_dim": 24, "num_heads": 2}'
    config = Config(vit_args=vit, pretrained=True, height=32, width=16)
    network = build_network(config, 4, load_pretrained=False)
    assert network.std.flatten().tolist() == [0.5, 0.5, 0.5]  # of timm's vit_tiny
    assert build_network(tiny_reid.config(), 4).std.flatten()[0] == pytest.approx(0.229)


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
