"""Biases with entries of minus infinity, as analysis shows them."""

import math

import pytest
import torch
from tiny_vit import images, vit

import posenc
from posenc import TokenLayout
from posenc.analysis import attention_rollout, bias_map, capture_attention, position_biases


def test_the_mean_is_over_what_the_query_sees():
    layout = TokenLayout(1, 3, prefix=1)
    bias = torch.tensor([-1.0, -math.inf, 4.0, 0.0]).expand(4, 4)
    expected = torch.tensor([[-math.inf, 3.0, -1.0]])
    assert torch.equal(bias_map(bias, layout, (0, 1)), expected)


def test_a_patched_model():
    model = vit(num_heads=4).eval()
    with pytest.warns(UserWarning, match="LookHere has an effect from the start"):
        posenc.patch_model(model, "lookhere", field_of_view=180)
    with capture_attention(model) as captured, torch.no_grad():
        model(images(model))
    layout, name = next((layout, name) for name, layout in captured.layouts.items())
    for bias in (captured.bias[name][0], position_biases(model)[name]):
        shown = bias_map(bias, layout, (1, 0))
        assert not shown.isnan().any()
        seen = shown[1] > -math.inf  # by the head that looks down
        assert seen[1:].all()
        assert not seen[0].any()
    assert attention_rollout(captured.attention, layout).isfinite().all()
