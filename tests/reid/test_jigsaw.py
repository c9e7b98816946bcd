"""The jigsaw patch module: its order, and its features."""

import json
import re

import golden_cases
import pytest
import tiny_reid
import torch
from model.jigsaw import Jigsaw, jigsaw_order
from model.network import build_network

import posenc

NO_CLS = json.dumps({**tiny_reid.VIT, "class_token": False})
BEIT = {
    "vit": "beit_base_patch16_224",
    "vit_args": '{"depth": 1, "embed_dim": 32, "num_heads": 2}',
}


def test_the_order_equals_transreid():
    """Whose shift of s moves s - 1 patches, and whose patches are numbered from 1."""
    golden = golden_cases.case("transreid_jpm_order")
    for name, expected in golden.arrays.items():
        patches, shift, groups = map(int, re.findall(r"\d+", name))
        assert jigsaw_order(patches, shift - 1, groups).tolist() == (expected - 1).tolist(), name


@pytest.mark.parametrize(("patches", "groups"), [(7, 2), (9, 4), (10, 4), (8, 8), (3, 1)])
def test_every_patch_is_dealt(patches, groups):
    order = jigsaw_order(patches, 1, groups).tolist()
    assert set(order) == set(range(patches))
    assert len(order) == -(-patches // groups) * groups


@pytest.mark.parametrize(
    ("patches", "shift", "groups"), [(8, 8, 2), (8, -1, 2), (8, 2, 0), (8, 2, 9), (1, 0, 1)]
)
def test_no_such_order(patches, shift, groups):
    with pytest.raises(ValueError, match=rf"the jigsaw of {patches} patches needs a shift of 0 to"):
        jigsaw_order(patches, shift, groups)


@pytest.mark.parametrize("pool", ["token", "avg"])
@pytest.mark.parametrize("registers", [0, 2])
def test_features_of_parts(pool, registers):
    """One part after the other, each through the copy of the last block."""
    vit_args = json.dumps({**tiny_reid.VIT, "reg_tokens": registers})
    changes = {"parts": "jigsaw", "num_parts": 3, "shift": 2, "pool": pool, "height": 40}
    network = build_network(tiny_reid.config(vit_args=vit_args, **changes), 5).eval()
    vit, parts = network.vit, network.parts
    assert isinstance(parts.norm, torch.nn.LayerNorm)
    with torch.no_grad():
        for parameter in parts.parameters():
            parameter.normal_(std=0.3)
    prefix = vit.num_prefix_tokens
    before = torch.randn(2, prefix + 10, 24)
    found = parts(vit, None, before)
    order = [2, 7, 3, 8, 4, 9, 5, 0, 6, 1]
    for part in range(3):
        chosen = [prefix + patch for patch in order[3 * part : 3 * part + 3]]
        own = torch.cat([before[:, :prefix], before[:, chosen]], dim=1)
        expected = parts.norm(parts.block(own))[:, 0]
        torch.testing.assert_close(found[:, part], expected)


def test_the_copy_has_no_encodings_and_learns_for_itself():
    network = build_network(tiny_reid.config(parts="jigsaw", encoding="irpe+peg"), 5)
    assert posenc.is_patched(network.vit)
    assert not any("posenc" in name for name in network.parts.state_dict())
    own = network.vit.blocks[-1].state_dict()
    for name, value in network.parts.block.state_dict().items():
        assert torch.equal(value, own[name])
        assert value.data_ptr() != own[name].data_ptr()


def test_the_tokens_before_the_last_block():
    network = build_network(tiny_reid.config(parts="jigsaw", encoding="learned"), 5).eval()
    images = torch.randn(2, 3, 32, 16)
    tokens, before = network.tokens(images, None)
    assert not network.vit.blocks[-1]._forward_pre_hooks
    torch.testing.assert_close(tokens, network.vit.forward_features(images))
    torch.testing.assert_close(tokens, network.vit.norm(network.vit.blocks[-1](before)))


def test_what_is_seen_and_searched_with():
    network = build_network(tiny_reid.config(parts="jigsaw", num_parts=2), 5)
    images = torch.randint(0, 256, (6, 3, 32, 16), dtype=torch.uint8)
    seen = network.train()(images)
    assert len(seen.parts) == 2
    for features, logits in seen.parts:
        assert (features.shape, logits.shape) == ((6, 24), (6, 5))
    found = network.eval()(images)
    whole = build_network(tiny_reid.config(), 5)
    whole.load_state_dict(
        {k: v for k, v in network.state_dict().items() if not k.startswith("part")}
    )
    torch.testing.assert_close(found[:, :24], whole.eval()(images))
    tokens, before = network.tokens((images / 255 - network.mean) / network.std, None)
    second = network.part_heads[1].neck(network.parts(network.vit, tokens, before)[:, 1])
    torch.testing.assert_close(found[:, 48:], second)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"vit_args": NO_CLS}, "are CLS tokens, and this model has none"),
        ({"num_parts": 9}, "8 patches are too few for 9 parts"),
        ({"shift": 8}, "of 8 patches needs a shift of 0 to 7"),
        (BEIT, "--parts jigsaw needs a plain vision transformer of timm, and this is a Beit"),
    ],
)
def test_models_without_a_jigsaw(changes, rule):
    config = tiny_reid.config(**{"parts": "jigsaw", **changes})
    with pytest.raises(ValueError, match=rule):
        build_network(config, 4)


def test_the_jigsaw_follows_the_size():
    network = build_network(tiny_reid.config(parts="jigsaw"), 4)
    assert isinstance(network.parts, Jigsaw)
    assert network.parts(network.vit, None, torch.randn(1, 1 + 30, 24)).shape == (1, 4, 24)
