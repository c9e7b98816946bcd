"""plot_bias draws `bias_map`, each layer on its own scale."""

import numpy as np
import pytest
import tiny_windowed
import torch
from capture_cases import patched
from drawn import bars, marked, numbers, panels
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from random_encodings import randomize_encodings
from tiny_vit import images, vit

from posenc import TokenLayout, patch_model
from posenc.analysis import CapturedAttention, bias_map, capture_attention, position_biases
from posenc.analysis.plot import plot_bias

NAMES = ["blocks.0.attn", "blocks.1.attn"]


def captured_of(model, batch=3):
    with torch.no_grad(), capture_attention(model) as captured:
        model(images(model, batch))
    return captured


def equals(ax, expected):
    np.testing.assert_allclose(numbers(ax), expected.detach().numpy(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize("query", [None, (0, 4), (2, 1)])
def test_panels_are_the_maps(prefix, query):
    model = patched("swin", vit(prefix))
    figure = plot_bias(model, query, figure=Figure())
    shown = panels(figure)
    assert len(shown) == 4
    place = query or (1, 2)
    maps = [
        bias_map(bias, TokenLayout(3, 5, prefix), place) for bias in position_biases(model).values()
    ]
    for ax, expected in zip(shown, torch.cat(maps), strict=True):
        equals(ax, expected)
        assert marked(ax) == (place, (1, 1))
    assert f"the patch at {place}" in figure.get_suptitle()


def test_a_prefix_token_as_query_has_no_mark():
    model = patched("swin", vit(5))
    figure = plot_bias(model, 3, figure=Figure())
    biases = position_biases(model)
    equals(panels(figure)[2], bias_map(biases[NAMES[1]][0], TokenLayout(3, 5, 5), 3))
    assert not any(ax.patches for ax in panels(figure))
    assert "prefix token 3" in figure.get_suptitle()


def test_without_centering():
    model = patched("swin")
    figure = plot_bias(model, center=False, figure=Figure())
    bias = position_biases(model)[NAMES[0]][0]
    equals(panels(figure)[0], bias_map(bias, TokenLayout(3, 5, 1), (1, 2), center=False))


def test_each_layer_has_a_symmetric_scale_of_its_own():
    model = patched("swin")
    with torch.no_grad():
        for parameter in model.blocks[1].attn.posenc.parameters():
            parameter *= 100
    figure = plot_bias(model, figure=Figure())
    limits = [ax.images[0].get_clim() for ax in panels(figure)]
    largest = [np.abs([numbers(ax) for ax in panels(figure)[2 * n :][:2]]).max() for n in (0, 1)]
    assert limits == [(-largest[0], largest[0])] * 2 + [(-largest[1], largest[1])] * 2
    assert largest[1] > 50 * largest[0]
    ticks = [bar.get_yticks().tolist() for bar in bars(figure)]
    assert ticks == [pytest.approx([-one, 0, one], abs=1e-12) for one in largest]
    assert bars(figure)[0].get_title(loc="left") == "logits"


def test_labels():
    figure = plot_bias(patched("swin"), figure=Figure())
    assert [ax.get_title() for ax in panels(figure)] == ["head 0", "head 1", "", ""]
    assert [ax.get_ylabel() for ax in panels(figure)] == ["block 0", "", "block 1", ""]


@pytest.mark.parametrize(("layers", "heads"), [(-1, [1]), ("blocks.1.attn", -1), ([1], [-1])])
def test_some_layers_and_heads(layers, heads):
    model = patched("swin")
    (ax,) = panels(plot_bias(model, layers=layers, heads=heads, figure=Figure()))
    equals(ax, bias_map(position_biases(model)[NAMES[1]][1], TokenLayout(3, 5, 1), (1, 2)))
    assert (ax.get_title(), ax.get_ylabel()) == ("head 1", "block 1")


def test_labels_are_the_numbers_of_blocks_where_some_have_no_encoding():
    model = patch_model(vit(depth=3), "swin", blocks=slice(1, 3))
    shown = panels(plot_bias(model, figure=Figure()))
    assert [ax.get_ylabel() for ax in shown[::2]] == ["block 1", "block 2"]


def test_what_a_query_does_not_see_is_gray_and_leaves_the_scale_alone():
    with pytest.warns(UserWarning, match="LookHere"):
        model = patch_model(vit(), "lookhere")
    figure = plot_bias(model, (1, 2), figure=Figure())
    (bias, _) = position_biases(model).values()
    hidden = torch.isneginf(bias_map(bias, TokenLayout(3, 5, 1), (1, 2))).numpy()
    assert 0 < hidden.sum() < hidden.size
    for ax, unseen in zip(panels(figure), hidden, strict=False):
        assert np.array_equal(np.ma.getmaskarray(ax.images[0].get_array()), unseen)
        assert np.isfinite(ax.images[0].get_clim()).all()
        color = ax.images[0].to_rgba(ax.images[0].get_array())[unseen]
        assert np.allclose(color, [0.6, 0.6, 0.6, 1])
    assert "does not see" in figure.get_supxlabel()
    assert not plot_bias(patched("swin"), figure=Figure()).get_supxlabel()


def test_a_bias_of_zero_is_white_on_a_scale_of_one():
    figure = plot_bias(patch_model(vit(), "swin"), figure=Figure())
    assert {ax.images[0].get_clim() for ax in panels(figure)} == {(-1.0, 1.0)}


def test_of_an_image_or_the_mean():
    model = patched("irpe")
    captured = captured_of(model)
    layout, bias = captured.layouts[NAMES[0]], captured.bias[NAMES[0]]
    assert bias.shape[0] == 3
    for index in (0, 2, -1):
        figure = plot_bias(captured, (2, 3), image_index=index, figure=Figure())
        equals(panels(figure)[1], bias_map(bias[index, 1], layout, (2, 3)))
    figure = plot_bias(captured, (2, 3), image_index=None, figure=Figure())
    equals(panels(figure)[1], bias_map(bias.mean(0)[1], layout, (2, 3)))


def test_a_static_bias_is_that_of_each_image_and_head():
    model = patched("swin")
    captured = captured_of(model)
    assert captured.bias[NAMES[0]].shape[0] == 1
    shown = panels(plot_bias(captured, image_index=2, figure=Figure()))
    assert len(shown) == 4
    for ax, other in zip(shown, panels(plot_bias(model, figure=Figure())), strict=True):
        np.testing.assert_allclose(numbers(ax), numbers(other), rtol=1e-6, atol=1e-9)


def test_a_bias_that_heads_share():
    attention, bias = torch.rand(2, 3, 6, 6), torch.rand(2, 1, 6, 6)
    layouts = {"attn": TokenLayout(2, 3)}
    captured = CapturedAttention({"attn": attention}, {"attn": bias}, layouts)
    shown = panels(plot_bias(captured, (1, 1), image_index=1, figure=Figure()))
    assert len(shown) == 3
    for ax in shown:
        equals(ax, bias_map(bias[1, 0], layouts["attn"], (1, 1)))
    assert shown[0].get_ylabel() == "attn"


def test_layers_with_different_heads_and_windows():
    model = patch_model(tiny_windowed.build("swin"), "swin")
    randomize_encodings(model, 0.3, seed=1)
    figure = plot_bias(model, figure=Figure())
    biases = position_biases(model)
    rows = [bias_map(one, TokenLayout(2, 4), (1, 2)) for one in biases.values()]
    assert [len(row) for row in rows] == [2, 2, 4, 4]
    for ax, expected in zip(panels(figure), torch.cat(rows), strict=True):
        equals(ax, expected)
    titles = [ax.get_title() for ax in panels(figure)]
    assert titles == ["head 0", "head 1", "", "", "", "", "head 2", "head 3", *[""] * 4]
    assert panels(figure)[0].get_ylabel() == "block 0.0"


def test_a_new_figure_is_that_of_pyplot_and_settings_stay():
    before = dict(plt.rcParams)
    figure = plot_bias(patched("swin"), layers=0, heads=0)
    try:
        assert plt.gcf() is figure
        figure.canvas.draw()
        assert figure.get_size_inches()[0] <= 8
    finally:
        plt.close(figure)
    assert dict(plt.rcParams) == before


def test_into_a_part_of_a_figure():
    figure = Figure(layout="constrained")
    left, right = figure.subfigures(1, 2)
    assert plot_bias(patched("swin"), figure=left) is left
    assert len(panels(left)) == 4
    assert right.axes == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"query": (3, 0)}, r"plot_bias: query=\(3, 0\) is not in the layout 3x5 \+ 1 prefix"),
        ({"query": 1}, "plot_bias: query=1 is not in the layout"),
        (
            {"layers": 2},
            "plot_bias: there is no layer 2: it has 0 to 1, or by name 'blocks.0.attn'",
        ),
        ({"layers": "blocks.7.attn"}, "there is no layer 'blocks.7.attn'"),
        ({"layers": []}, "layers must name at least one"),
        ({"heads": [0, 2]}, r"heads=\[0, 2\] are not heads of blocks.0.attn, which has 2: 0 to 1"),
        ({"heads": []}, r"heads=\[\] are not heads"),
    ],
)
def test_nothing_is_drawn_of_what_is_not_there(options, words):
    figure = Figure()
    with pytest.raises(ValueError, match=words):
        plot_bias(patched("swin"), figure=figure, **options)
    assert figure.axes == []


def test_no_bias():
    with pytest.raises(ValueError, match="is not patched; call"):
        plot_bias(vit())
    with pytest.raises(ValueError, match="no encoding of the model gives a bias"):
        plot_bias(patched("peg"))
    with pytest.raises(ValueError, match=r"depends on queries and keys.*capture_attention"):
        plot_bias(patched("irpe"))
    with pytest.raises(ValueError, match="no layer that was captured has a bias of posenc"):
        plot_bias(captured_of(vit()))
    with pytest.raises(ValueError, match="nothing is captured: run images inside"):
        plot_bias(CapturedAttention())
    with pytest.raises(TypeError, match=r"captured must be .*capture_attention gives, got str"):
        plot_bias("swin")


def test_images_that_are_not_there():
    with pytest.raises(ValueError, match="image_index=3 is not one of the 3 that were captured"):
        plot_bias(captured_of(patched("swin")), image_index=3)


def test_contextual_biases_of_windows_have_a_mean_only():
    model = patch_model(tiny_windowed.build("swin"), "irpe")
    randomize_encodings(model, 0.3, seed=1)
    with torch.no_grad(), capture_attention(model) as captured:
        model(torch.rand(1, 3, 12, 20, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"has windows, whose biases differ.*image_index=None"):
        plot_bias(captured, layers=0)
    shown = panels(plot_bias(captured, (0, 3), layers=0, image_index=None, figure=Figure()))
    name = next(iter(captured.bias))
    equals(shown[1], bias_map(captured.bias[name].mean(0)[1], TokenLayout(2, 4), (0, 3)))


def test_a_figure_must_be_an_empty_figure():
    figure = Figure()
    figure.subplots()
    with pytest.raises(ValueError, match="figure must be empty, it has 1 axes"):
        plot_bias(patched("swin"), figure=figure)
    with pytest.raises(TypeError, match="must be a matplotlib Figure or SubFigure, got Axes"):
        plot_bias(patched("swin"), figure=figure.axes[0])
