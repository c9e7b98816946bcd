"""plot_attention and plot_rollout draw what was captured over the image."""

import numpy as np
import pytest
import torch
from drawn import axes, bars, marked, numbers, panels
from matplotlib.figure import Figure
from tiny_vit import images, vit

from posenc import TokenLayout
from posenc.analysis import CapturedAttention, attention_rollout, capture_attention
from posenc.analysis.plot import plot_attention, plot_rollout

LAST = "blocks.1.attn"
PHOTO = torch.rand(3, 12, 20, generator=torch.Generator().manual_seed(3))


def captured_of(prefix=1, batch=3):
    model = vit(prefix)
    with torch.no_grad(), capture_attention(model) as captured:
        model(images(model, batch))
    return captured


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize("query", [None, (2, 1)])
def test_heads_are_the_rows_of_the_query(prefix, query):
    captured = captured_of(prefix)
    figure = plot_attention(PHOTO, captured, query, image_index=1, figure=Figure())
    photo, *heads = panels(figure)
    np.testing.assert_allclose(numbers(photo), PHOTO.permute(1, 2, 0))
    token = (prefix + 2 * 5 + 1) if query else (0 if prefix else 1 * 5 + 2)
    row = captured.attention[LAST][1, :, token]
    assert len(heads) == 2
    for number, (ax, weights) in enumerate(zip(heads, row, strict=True)):
        under, over = ax.images
        np.testing.assert_allclose(under.get_array(), PHOTO.mean(0), rtol=1e-6)
        grid = weights[prefix:].view(3, 5)
        np.testing.assert_allclose(numbers(ax), grid / grid.max(), rtol=1e-6)
        assert over.get_extent() == [-0.5, 19.5, 11.5, -0.5]
        assert over.get_clim() == (0, 1)
        title = ax.get_title().split("\n")
        assert title[:2] == [f"head {number}", f"max {100 * grid.max():.2g} %"]
        assert title[2:] == ([f"prefix {100 * weights[:prefix].sum():.2g} %"] if prefix else [])
    assert figure.get_suptitle().endswith("in block 1")
    assert len(bars(figure)) == 1


def test_the_mark_is_in_pixels_and_on_the_photo_too():
    figure = plot_attention(PHOTO, captured_of(), (2, 3), figure=Figure())
    assert [marked(ax) for ax in panels(figure)] == [((8, 12), (4, 4))] * 3
    figure = plot_attention(PHOTO, captured_of(5), 4, figure=Figure())
    assert not any(ax.patches for ax in panels(figure))
    assert "prefix token 4" in figure.get_suptitle()


def test_one_layer_and_head():
    captured = captured_of()
    figure = plot_attention(PHOTO, captured, layer="blocks.0.attn", heads=-1, figure=Figure())
    _, ax = panels(figure)
    row = captured.attention["blocks.0.attn"][0, 1, 0, 1:].view(3, 5)
    np.testing.assert_allclose(numbers(ax), row / row.max(), rtol=1e-6)
    assert figure.get_suptitle() == "attention of prefix token 0 in block 0"


def test_many_heads_are_in_rows():
    captured = CapturedAttention({"a": torch.rand(1, 12, 15, 15)}, {}, {"a": TokenLayout(3, 5)})
    figure = plot_attention(PHOTO, captured, figure=Figure())
    assert len(panels(figure)) == 13
    assert panels(figure)[-1].get_subplotspec().get_gridspec().get_geometry() == (3, 5)


def test_what_gives_patches_nothing_is_dark():
    weights = torch.zeros(1, 1, 16, 16)
    weights[..., 0] = 1
    captured = CapturedAttention({"a": weights}, {}, {"a": TokenLayout(3, 5, 1)})
    _, ax = panels(plot_attention(PHOTO, captured, figure=Figure()))
    assert not numbers(ax).any()
    assert ax.get_title() == "head 0\nmax 0 %\nprefix 100 %"


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_rollout_over_the_image(prefix):
    captured = captured_of(prefix)
    ax = axes()
    options = {"head_fusion": "max", "discard_ratio": 0.3, "pool": "avg"}
    assert plot_rollout(PHOTO, captured, image_index=2, ax=ax, **options) is ax
    expected = attention_rollout(captured.attention, TokenLayout(3, 5, prefix), **options)[2]
    np.testing.assert_allclose(numbers(ax), expected, rtol=1e-6)
    under, over = ax.images
    np.testing.assert_allclose(under.get_array(), PHOTO.mean(0), rtol=1e-6)
    assert over.get_extent() == [-0.5, 19.5, 11.5, -0.5]
    assert over.get_clim() == pytest.approx((expected.min().item(), 1))
    assert bars(ax.figure)[0].get_ylabel() == "rollout, share of the maximum"


def test_rollout_without_a_color_bar_and_with_patches():
    ax = plot_rollout(
        PHOTO, captured_of(), colorbar=False, interpolation="nearest", alpha=0.2, ax=axes()
    )
    assert bars(ax.figure) == []
    assert (ax.images[1].get_interpolation(), ax.images[1].get_alpha()) == ("nearest", 0.2)


def test_rollout_of_layers_with_other_tokens():
    attention = {"a": torch.rand(1, 1, 15, 15), "b": torch.rand(1, 1, 6, 6)}
    layouts = {"a": TokenLayout(3, 5), "b": TokenLayout(2, 3)}
    with pytest.raises(ValueError, match=r"these have different tokens: 2x3, 3x5"):
        plot_rollout(PHOTO, CapturedAttention(attention, {}, layouts))


@pytest.mark.parametrize("plot", [plot_attention, plot_rollout])
def test_windows_do_not_lie_on_the_image(plot):
    captured = captured_of()
    captured.own_grids.add(LAST)
    with pytest.raises(ValueError, match=rf"{plot.__name__}: {LAST} sees a window, or the grid"):
        plot(PHOTO, captured)
    if plot is plot_attention:
        plot(PHOTO, captured, layer=0, figure=Figure())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"query": (3, 0)}, r"plot_attention: query=\(3, 0\) is not in the layout 3x5"),
        ({"query": "center"}, r"plot_attention: query must be \(row, column\)"),
        ({"layer": 2}, "there is no layer 2: it has 0 to 1"),
        ({"layer": 0.5}, "there is no layer 0.5"),
        ({"heads": 2}, "heads=2 are not heads of blocks.1.attn, which has 2"),
        ({"image_index": -4}, "image_index=-4 is not one of the 3 that were captured: 0 to 2"),
        ({"image_index": None}, "image_index=None is not one of the 3"),
    ],
)
def test_nothing_is_drawn_of_what_is_not_there(options, words):
    figure = Figure()
    with pytest.raises((ValueError, TypeError), match=words):
        plot_attention(PHOTO, captured_of(), figure=figure, **options)
    assert figure.axes == []


def test_no_record():
    with pytest.raises(TypeError, match=r"plot_rollout: captured must be what .* got dict"):
        plot_rollout(PHOTO, captured_of().attention)
    with pytest.raises(ValueError, match="plot_attention: nothing is captured"):
        plot_attention(PHOTO, CapturedAttention())


@pytest.mark.parametrize("plot", [plot_attention, plot_rollout])
def test_a_damaged_model(plot):
    captured = captured_of()
    captured.attention[LAST][0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="has values that are not finite"):
        plot(PHOTO, captured)


def test_axes_must_be_axes():
    with pytest.raises(TypeError, match="plot_rollout: ax must be a matplotlib Axes, got Figure"):
        plot_rollout(PHOTO, captured_of(), ax=Figure())
