"""Mean attention distance against the public code, and against loops on rectangles."""

import math

import numpy as np
import oracles
import pytest
import tiny_windowed
import torch
from golden_cases import FOLDER

from posenc import TokenLayout
from posenc.analysis import capture_attention, mean_attention_distance

GOLDEN = {
    "mean_attention_distance_4x4_p16_prefix1": (TokenLayout(4, 4, prefix=1), 16),
    "mean_attention_distance_5x5_p8_prefix0": (TokenLayout(5, 5), 8),
}
LAYOUTS = [(3, 5, 0), (5, 3, 1), (1, 6, 2), (2, 3, 5), (1, 1, 1)]


def attention(height, width, prefix, batch=2, heads=3):
    tokens = prefix + height * width
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(batch, heads, tokens, tokens, generator=generator, dtype=torch.float64)
    return scores.mul(2).softmax(-1)


def loops(weights, height, width, prefix, size, renormalize):
    total, tokens = 0.0, range(prefix, prefix + height * width)
    for i in tokens:
        y, x = oracles.position(i, width, prefix)
        row, given = 0.0, 0.0
        for j in tokens:
            other_y, other_x = oracles.position(j, width, prefix)
            distance = math.sqrt(((y - other_y) * size[0]) ** 2 + ((x - other_x) * size[1]) ** 2)
            row = row + weights[..., i, j] * distance
            given = given + weights[..., i, j]
        total = total + (row / given if renormalize else row)
    return total / len(tokens)


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name):
    layout, patch_size = GOLDEN[name]
    stored = {key: torch.from_numpy(a) for key, a in np.load(FOLDER / f"{name}.npz").items()}
    weights = stored["attn"].double()
    for array, renormalize in [("distance", False), ("distance_renormalised", True)]:
        actual = mean_attention_distance(
            weights, layout, patch_size=patch_size, renormalize=renormalize
        )
        torch.testing.assert_close(actual, stored[array], rtol=0.0, atol=1e-6)
    by_default = mean_attention_distance(weights, layout, patch_size=patch_size)
    torch.testing.assert_close(by_default, stored["distance_renormalised"], rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("patch_size", [1.0, 16, (8, 3.5)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rectangles_as_in_loops(layout, patch_size, renormalize):
    weights = attention(*layout)
    actual = mean_attention_distance(
        weights, TokenLayout(*layout), patch_size=patch_size, renormalize=renormalize
    )
    size = patch_size if isinstance(patch_size, tuple) else (patch_size, patch_size)
    assert actual.shape == (2, 3)
    expected = loops(weights, *layout, size, renormalize)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_the_unit_is_that_of_the_patch():
    layout, weights = TokenLayout(3, 5, prefix=1), attention(3, 5, 1)
    assert torch.equal(
        mean_attention_distance(weights, layout, patch_size=16),
        16 * mean_attention_distance(weights, layout),
    )


def test_what_goes_to_prefix_tokens_shortens_the_distance_without_renormalize():
    weights = torch.zeros(1, 1, 7, 7)
    weights[..., 1:, 0] = 0.75
    weights[..., 1:, 1:] = 0.25 / 6
    layout = TokenLayout(2, 3, prefix=1)
    whole = mean_attention_distance(weights, layout)
    part = mean_attention_distance(weights, layout, renormalize=False)
    torch.testing.assert_close(part, whole / 4)


def test_rows_without_weight_on_patches_are_left_out():
    layout, weights = TokenLayout(3, 5, prefix=1), attention(3, 5, 1, batch=1, heads=2)
    weights[:, 0, 1] = torch.eye(16)[0]  # the first patch looks at the CLS token alone
    weights[:, 1, 1:] = torch.eye(16)[0]
    actual = mean_attention_distance(weights, layout)
    others = [loop_row(weights[0, 0], i) for i in range(2, 16)]
    torch.testing.assert_close(actual[0, 0], sum(others) / 14)
    assert actual[0, 1].isnan()
    assert mean_attention_distance(weights, layout, renormalize=False)[0, 1] == 0


def loop_row(weights, i):
    (y, x), row, given = oracles.position(i, 5, 1), 0.0, 0.0
    for j in range(1, 16):
        other_y, other_x = oracles.position(j, 5, 1)
        row += weights[i, j] * math.hypot(y - other_y, x - other_x)
        given += weights[i, j]
    return row / given


def test_windows_are_in_the_batch():
    model, x = tiny_windowed.build("swin"), tiny_windowed.images("swin")
    with torch.no_grad(), capture_attention(model) as captured:
        model(x)
    for site, weights in captured.attention.items():
        actual = mean_attention_distance(weights, captured.layouts[site])
        assert actual.shape == weights.shape[:2]
        assert actual.isfinite().all()


def test_half_precision_is_computed_in_float32():
    layout, weights = TokenLayout(3, 5, prefix=1), attention(3, 5, 1).half()
    actual = mean_attention_distance(weights, layout)
    assert actual.dtype == torch.float32
    expected = mean_attention_distance(weights.double(), layout).float()
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_errors():
    layout, weights = TokenLayout(3, 5, prefix=1), attention(3, 5, 1)
    for wrong, message in [
        (weights[0], r"\[B, heads, 16, 16\].*got \[3, 16, 16\]"),
        (weights[..., 1:, 1:], r"3x5 \+ 1 prefix with 16 tokens, got \[2, 3, 15, 15\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            mean_attention_distance(wrong, layout)
    with pytest.raises(TypeError, match=r"attention must be a floating point tensor, got torch\.b"):
        mean_attention_distance(weights > 0, layout)
    with pytest.raises(TypeError, match="layout must be"):
        mean_attention_distance(weights, 16)
    for size in (0, -1.0, (1, 2, 3), (1, 0), "16px", float("inf"), float("nan"), None):
        with pytest.raises(ValueError, match="patch_size must be a positive number or"):
            mean_attention_distance(weights, layout, patch_size=size)
