"""plot_distance draws `mean_attention_distance` of each head against depth."""

import numpy as np
import pytest
import tiny_windowed
import torch
from drawn import axes
from tiny_vit import images, vit

from posenc import TokenLayout
from posenc.analysis import CapturedAttention, capture_attention, mean_attention_distance
from posenc.analysis.plot import plot_distance

LAYOUT = TokenLayout(3, 5, prefix=1)


def captured_of(model, x):
    with torch.no_grad(), capture_attention(model) as captured:
        model(x)
    return captured


@pytest.fixture(scope="module")
def captured():
    model = vit(depth=3)
    return captured_of(model, images(model, 4))


@pytest.fixture(scope="module")
def of_windows():
    return captured_of(tiny_windowed.build("swin"), torch.rand(2, 3, 12, 20, dtype=torch.float64))


def dots(ax):
    return [line.get_xydata() for line in ax.lines if line.get_marker() == "o"]


def labeled(ax, label):
    (line,) = [line for line in ax.lines if line.get_label() == label]
    return line.get_ydata()


@pytest.mark.parametrize(
    ("patch_size", "unit"),
    [(None, "patches"), (16, "pixels"), ((8, 4), "pixels"), ([8, 4], "pixels")],
)
@pytest.mark.parametrize("renormalize", [True, False])
def test_dots_are_the_distances(captured, patch_size, unit, renormalize):
    ax = axes()
    options = {"patch_size": patch_size, "renormalize": renormalize}
    assert plot_distance(captured, **options, ax=ax) is ax
    size = 1.0 if patch_size is None else patch_size
    means = []
    for depth, (points, weights) in enumerate(
        zip(dots(ax), captured.attention.values(), strict=True)
    ):
        expected = mean_attention_distance(
            weights, LAYOUT, patch_size=size, renormalize=renormalize
        ).mean(0)
        assert points[:, 0].tolist() == [depth] * 2
        np.testing.assert_allclose(points[:, 1], expected)
        means.append(expected.mean().item())
    np.testing.assert_allclose(labeled(ax, "mean of the heads"), means)
    assert ax.get_ylabel() == f"mean attention distance\n({unit})"
    assert ax.get_xlabel() == "block"
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "1", "2"]
    assert ax.get_ylim()[0] == 0


def test_uniform_attention_is_a_line(captured):
    y, x = torch.meshgrid(torch.arange(3.0), torch.arange(5.0), indexing="ij")
    places = torch.stack([8 * y.flatten(), 4 * x.flatten()], 1)
    expected = torch.cdist(places, places).mean().item()
    ax = plot_distance(captured, patch_size=(8, 4), ax=axes())
    assert labeled(ax, "uniform attention") == pytest.approx([expected] * 2)


def test_heads_that_give_patches_nothing_are_left_out():
    weights = torch.rand(2, 3, 16, 16)
    weights[0, 0, :, 1:] = 0  # of one image
    weights[:, 1, :, 1:] = 0  # of all
    ax = plot_distance(CapturedAttention({"a": weights}, {}, {"a": LAYOUT}), ax=axes())
    expected = mean_attention_distance(weights, LAYOUT)
    ((first, none, _),) = [points[:, 1] for points in dots(ax)]
    assert first == pytest.approx(expected[1, 0].item())
    assert np.isnan(none)
    mean = (expected[1, 0] + expected[:, 2].mean()) / 2
    assert labeled(ax, "mean of the heads") == pytest.approx([mean.item()])


def test_windows_in_patches_or_with_the_size_of_each(of_windows):
    ax = plot_distance(of_windows, ax=axes())
    assert ax.get_ylabel().endswith("(patches of each block)")
    sizes = {name: 2 ** (1 + int(name[7])) for name in of_windows.attention}
    assert sorted(sizes.values()) == [2, 2, 4, 4]
    in_pixels = plot_distance(of_windows, patch_size=sizes, ax=axes())
    assert in_pixels.get_ylabel().endswith("(pixels)")
    for once, scaled, size in zip(dots(ax), dots(in_pixels), sizes.values(), strict=True):
        np.testing.assert_allclose(scaled[:, 1], size * once[:, 1])
    assert [line.get_label() for line in in_pixels.lines].count("uniform attention") == 0


def test_many_layers_have_some_ticks():
    names = [f"blocks.{n}.attn" for n in range(40)]
    weights = {name: torch.rand(1, 1, 16, 16) for name in names}
    ax = plot_distance(CapturedAttention(weights, {}, dict.fromkeys(names, LAYOUT)), ax=axes())
    assert [label.get_text() for label in ax.get_xticklabels()] == [str(n) for n in range(0, 40, 3)]


def test_refusals(captured, of_windows):
    with pytest.raises(ValueError, match="patch_size must be a positive number"):
        plot_distance(captured, patch_size=-1)
    with pytest.raises(ValueError, match=r"windows or stages, .* pass patch_size=\{name: size\}"):
        plot_distance(of_windows, patch_size=4)
    with pytest.raises(ValueError, match=r"patch_size has no entry for layers\.0"):
        plot_distance(of_windows, patch_size={"layers.9": 4})
    with pytest.raises(ValueError, match="plot_distance: nothing is captured"):
        plot_distance(CapturedAttention())
