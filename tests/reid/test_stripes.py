"""Stripes as parts."""

import json

import pytest
import tiny_reid
import torch
from model.network import build_network, set_size


def network_with(**changes):
    return build_network(tiny_reid.config(parts="stripes", **changes), 5).eval()


@pytest.mark.parametrize("pool", ["token", "avg"])
@pytest.mark.parametrize(
    ("height", "stripes", "rows"),
    [(32, 2, [[0, 1], [2, 3]]), (32, 4, [[0], [1], [2], [3]]), (40, 2, [[0, 1, 2], [2, 3, 4]])],
)
def test_means_of_rows(pool, height, stripes, rows):
    network = network_with(num_parts=stripes, height=height, width=24, pool=pool)
    with torch.no_grad():
        for parameter in network.vit.fc_norm.parameters():
            parameter.normal_()
    tokens = torch.randn(3, 1 + height // 8 * 3, 24)
    found = network.parts(network.vit, tokens, None)
    assert found.shape == (3, stripes, 24)
    image = tokens[:, 1:].unflatten(1, (height // 8, 3))
    for stripe, own in enumerate(rows):
        expected = network.vit.fc_norm(image[:, own].mean((1, 2)))
        torch.testing.assert_close(found[:, stripe], expected)


def test_every_stripe_has_its_own_head():
    network = network_with(num_parts=4).train()
    images = torch.randint(0, 256, (6, 3, 32, 16), dtype=torch.uint8)
    seen = network(images)
    assert [tuple(logits.shape) for _, logits in seen.parts] == [(6, 5)] * 4
    for head, (features, logits) in zip(network.part_heads, seen.parts, strict=True):
        centered = torch.nn.functional.batch_norm(features, None, None, training=True)
        torch.testing.assert_close(logits, centered @ head.classifier.weight.T)
    assert network.eval()(images).shape == (6, 5 * 24)


def test_another_size():
    network = network_with()
    set_size(network.vit, (48, 24))
    assert network(torch.zeros(1, 3, 48, 24, dtype=torch.uint8)).shape == (1, 5 * 24)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"num_parts": 5}, "4 rows of patches are too few for 5 stripes"),
        (
            {"vit_args": json.dumps({**tiny_reid.VIT, "dynamic_img_size": True})},
            "--parts stripes needs a model of one image size",
        ),
    ],
)
def test_models_without_stripes(changes, rule):
    with pytest.raises(ValueError, match=rule):
        network_with(**changes)
