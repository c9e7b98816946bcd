"""Attention rollout against the public code with its row sums mended, and against loops."""

import re

import numpy as np
import pytest
import tiny_vit
import torch
from golden_cases import FOLDER

from posenc import TokenLayout, patch_model
from posenc.analysis import attention_rollout, capture_attention

GOLDEN = sorted(path.stem for path in FOLDER.glob("rollout_*.npz"))
LAYOUTS = [(1, 4, 1), (3, 5, 0), (3, 5, 1), (5, 3, 2), (2, 3, 5), (1, 1, 1)]


def attentions(layers=3, batch=2, heads=3, tokens=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (layers, batch, heads, tokens, tokens)
    return list(torch.randn(shape, generator=generator, dtype=torch.float64).mul(2).softmax(-1))


def loops(layers, height, width, prefix, fusion="mean", ratio=0.0):
    """One image and one number at a time."""
    images = []
    for image in range(len(layers[0])):
        tokens = layers[0].shape[-1]
        rolled = [[float(i == j) for j in range(tokens)] for i in range(tokens)]
        for layer in layers:
            heads = layer[image].tolist()
            fuse = {"mean": lambda x: sum(x) / len(x), "max": max, "min": min}[fusion]
            flat = [
                fuse([head[i][j] for head in heads]) for i in range(tokens) for j in range(tokens)
            ]
            order = sorted(range(tokens**2), key=lambda index, flat=flat: flat[index])
            for index in order[: int(tokens**2 * ratio)]:
                if index != 0:
                    flat[index] = 0.0
            a = [
                [(flat[i * tokens + j] + (i == j)) / 2 for j in range(tokens)]
                for i in range(tokens)
            ]
            a = [[value / sum(row) for value in row] for row in a]
            rolled = [
                [sum(a[i][m] * rolled[m][j] for m in range(tokens)) for j in range(tokens)]
                for i in range(tokens)
            ]
        if prefix:
            row = rolled[0]
        else:
            row = [sum(column) / tokens for column in zip(*rolled, strict=True)]
        largest = max(row[prefix:]) or 1.0
        images.append([value / largest for value in row[prefix:]])
    return torch.tensor(images, dtype=torch.float64).view(-1, height, width)


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name):
    fusion, ratio, side = re.fullmatch(r"rollout_(\w+)_discard(.+)_L4_(\d)x4", name).groups()
    stored = np.load(FOLDER / f"{name}.npz")
    layers = list(torch.from_numpy(stored["attn"]))
    options = {"head_fusion": fusion, "discard_ratio": float(ratio)}
    actual = attention_rollout(layers, TokenLayout(4, int(side), prefix=1), **options)
    expected = torch.from_numpy(stored["mask_row_normalised"])
    torch.testing.assert_close(actual[0], expected, rtol=0.0, atol=1e-5)
    if name != "rollout_mean_discard0.0_L4_4x4":  # whose rows all have the same sum
        assert (actual[0] - torch.from_numpy(stored["mask_as_is"])).abs().max() > 1e-3


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_what_the_model_reads(prefix):
    layout = TokenLayout(2, 3, prefix)
    layers = [torch.rand(2, 3, layout.num_tokens, layout.num_tokens).softmax(-1) for _ in range(2)]
    mixed = [layer.mean(1) + torch.eye(layout.num_tokens) for layer in layers]
    mixed = [layer / layer.sum(-1, keepdim=True) for layer in mixed]
    rolled = mixed[1] @ mixed[0]
    average = rolled[:, prefix:].mean(1)[:, prefix:]
    expected = (average / average.amax(-1, keepdim=True)).view(2, 2, 3)
    torch.testing.assert_close(attention_rollout(layers, layout, pool="avg"), expected)
    if prefix:
        token = attention_rollout(layers, layout, pool="token")
        assert torch.equal(token, attention_rollout(layers, layout))
        assert (token - expected).abs().max() > 0.01
    else:
        with pytest.raises(ValueError, match='pool="token" reads a prefix token'):
            attention_rollout(layers, layout, pool="token")


def test_pools_that_are_not_known():
    with pytest.raises(ValueError, match='pool must be "token" or "avg", got \'max\''):
        attention_rollout([torch.rand(1, 1, 6, 6)], TokenLayout(2, 3), pool="max")


def test_there_are_golden_cases():
    assert len(GOLDEN) == 9


@pytest.mark.parametrize("fusion", ["mean", "max", "min"])
@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_image_as_in_loops(layout, ratio, fusion):
    height, width, prefix = layout
    layers = attentions(tokens=prefix + height * width, batch=3)
    actual = attention_rollout(
        layers, TokenLayout(*layout), head_fusion=fusion, discard_ratio=ratio
    )
    assert actual.shape == (3, height, width)
    expected = loops(layers, *layout, fusion, ratio)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_images_of_a_batch_do_not_mix():
    layers = attentions(batch=4)
    options = {"discard_ratio": 0.6, "head_fusion": "max"}
    layout = TokenLayout(2, 3, prefix=1)
    together = attention_rollout(layers, layout, **options)
    for index in range(4):
        alone = attention_rollout([a[index : index + 1] for a in layers], layout, **options)
        torch.testing.assert_close(together[index : index + 1], alone, rtol=0, atol=1e-14)


def test_the_first_layer_comes_first():
    """Patch (0, 1) goes to patch (1, 2), then that to the CLS token; the other way nothing."""
    first, second = torch.eye(7).repeat(2, 1, 1, 1, 1)
    first[..., 6, :] = torch.eye(7)[2]
    second[..., 0, :] = torch.eye(7)[6]
    layout = TokenLayout(2, 3, prefix=1)
    expected = torch.tensor([[[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])
    assert torch.equal(attention_rollout([first, second], layout), expected)
    backwards = attention_rollout([second, first], layout)
    assert torch.equal(backwards, torch.tensor([[[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]]))


def test_where_no_patch_is_reached_all_are_zero():
    actual = attention_rollout([torch.eye(7)[None, None]], TokenLayout(2, 3, prefix=1))
    assert torch.equal(actual, torch.zeros(1, 2, 3))


def test_the_first_entry_is_kept_and_of_equal_entries_the_first_are_discarded():
    attention = torch.full((1, 1, 3, 3), 1 / 3)
    actual = attention_rollout([attention], TokenLayout(1, 2, prefix=1), discard_ratio=2.5 / 9)
    # Entries (0, 0) and (0, 1) are the smallest; the first is kept.
    assert torch.equal(actual, torch.tensor([[[0.0, 1.0]]]))


def test_arguments_stay_as_they_are():
    layers = attentions()
    before = [layer.clone() for layer in layers]
    layout = TokenLayout(2, 3, prefix=1)
    for ratio in (0.0, 0.5):
        for fusion in ("mean", "max"):
            one_head = [layer[:, :1] for layer in layers]
            attention_rollout(one_head, layout, head_fusion=fusion, discard_ratio=ratio)
    assert all(torch.equal(*pair) for pair in zip(layers, before, strict=True))


def test_half_precision_is_computed_in_float32():
    layers = [layer.half() for layer in attentions()]
    layout = TokenLayout(2, 3, prefix=1)
    actual = attention_rollout(layers, layout)
    assert actual.dtype == torch.float32
    expected = attention_rollout([layer.double() for layer in layers], layout)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-6)


def test_gradients_reach_every_layer():
    layers = [layer.requires_grad_() for layer in attentions()]
    attention_rollout(
        layers, TokenLayout(2, 3, prefix=1), discard_ratio=0.2
    ).square().sum().backward()
    assert all(layer.grad.any() for layer in layers)


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_of_a_model(prefix):
    model = patch_model(tiny_vit.vit(prefix), "swin")
    with torch.no_grad(), capture_attention(model) as captured:
        model(tiny_vit.images(model))
    layout = captured.layouts["blocks.0.attn"]
    actual = attention_rollout(captured.attention, layout)
    expected = loops(list(captured.attention.values()), 3, 5, prefix)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_errors():
    layout = TokenLayout(2, 3, prefix=1)
    layers = attentions()
    for wrong, options, error, message in [
        ([], {}, ValueError, "at least one layer, got none"),
        ({}, {}, ValueError, "at least one layer, got none"),
        ([layers[0], layers[1][:1]], {}, ValueError, r"2 in the first and 1 in attentions\[1\]"),
        (layers, {"head_fusion": "sum"}, ValueError, "'mean', 'max', 'min', got 'sum'"),
        (layers, {"discard_ratio": 1.0}, ValueError, "less than 1, got 1.0"),
        (layers, {"discard_ratio": -0.1}, ValueError, "less than 1, got -0.1"),
        (layers, {"discard_ratio": float("nan")}, ValueError, "less than 1, got nan"),
        ([a[0] for a in layers], {}, ValueError, r"\[B, heads, 7, 7\].*got \[3, 7, 7\]"),
        ([a[..., :6] for a in layers], {}, ValueError, r"2x3 \+ 1 prefix with 7 tokens, got"),
        ([a > 0 for a in layers], {}, TypeError, r"attentions\[0\] must be a floating point"),
        ([1.0], {}, TypeError, "floating point tensor, got float"),
    ]:
        with pytest.raises(error, match=message):
            attention_rollout(wrong, layout, **options)
    with pytest.raises(TypeError, match=r"layout must be a posenc\.TokenLayout"):
        attention_rollout(layers, (2, 3))
