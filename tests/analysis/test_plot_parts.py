"""plot_parts draws where the parts of `human_part` are."""

import numpy as np
import pytest
import torch
from drawn import numbers
from matplotlib.figure import Figure
from tiny_vit import vit

from posenc import patch_model, patched_encodings
from posenc.analysis.plot import plot_parts

CENTERS = [0.1, 0.3, 0.5, 0.7, 0.9]


def model_with(parts=5, **options):
    model = patch_model(vit(), "human_part", human_part={"parts": parts}, **options)
    for encoding in patched_encodings(model).values():
        torch.nn.init.constant_(encoding.strength, -0.25)
    return model


def encoding_of(model, block):
    return patched_encodings(model)[f"blocks.{block}.attn.human_part"]


def heights(ax):
    return [line.get_ydata()[0] for line in ax.lines]


def test_centers_and_widths_without_a_background():
    model = model_with()
    with torch.no_grad():
        encoding_of(model, 1).part_centers.copy_(torch.tensor(CENTERS))
        encoding_of(model, 1).log_part_width.fill_(np.log(0.05))
    first, second = plot_parts(model, figure=Figure()).axes
    assert heights(second) == pytest.approx(CENTERS)
    bands = [(patch.get_y(), patch.get_height()) for patch in second.patches]
    assert [y for y, _ in bands] == pytest.approx([center - 0.05 for center in CENTERS])
    assert [height for _, height in bands] == pytest.approx([0.1] * 5)
    assert second.get_ylim() == (1, 0)
    assert first.get_ylabel() == "height (crops)"
    assert [ax.get_title() for ax in (first, second)] == [
        "block 0\nstrength 0.25",
        "block 1\nstrength 0.25",
    ]


def test_over_an_image_in_its_pixels():
    model = model_with()
    with torch.no_grad():
        encoding_of(model, 0).part_centers.copy_(torch.tensor(CENTERS))
    mean = np.random.default_rng(0).random((40, 20, 3))
    ax, _ = plot_parts(model, mean, figure=Figure()).axes
    np.testing.assert_allclose(numbers(ax), mean, rtol=1e-6)
    assert heights(ax) == pytest.approx([3.5, 11.5, 19.5, 27.5, 35.5])  # pixel 0 begins at -0.5
    assert ax.get_ylim() == (39.5, -0.5)
    assert ax.get_ylabel() == "height (pixels)"


def test_what_is_outside_of_the_crop_is_named():
    model = model_with()
    with torch.no_grad():
        encoding_of(model, 0).part_centers[4] = 1.3
        encoding_of(model, 0).part_centers[0] = -0.04
    first, second = plot_parts(model, figure=Figure()).axes
    assert first.get_xlabel() == "outside:\nhead at -0.04\nshins at 1.30"
    assert second.get_xlabel() == ""
    assert first.get_ylim() == (1, 0)


@pytest.mark.parametrize(
    ("parts", "names", "expected"),
    [
        (5, None, ["head", "chest", "hips", "thighs", "shins"]),
        (3, None, ["part 0", "part 1", "part 2"]),
        (2, ("above", "below"), ["above", "below"]),
    ],
)
def test_names(parts, names, expected):
    figure = plot_parts(model_with(parts), names=names, figure=Figure())
    assert [text.get_text() for text in figure.legends[0].get_texts()] == expected
    colors = [line.get_color() for line in figure.axes[0].lines]
    assert len(set(colors)) == parts


def test_one_encoding_for_all_blocks():
    figure = plot_parts(model_with(share=True), figure=Figure())
    assert [ax.get_title() for ax in figure.axes] == ["human_part\nstrength 0.25"]


def test_refusals():
    with pytest.raises(ValueError, match="is not patched; call"):
        plot_parts(vit())
    with pytest.raises(ValueError, match='no encoding "human_part", it is patched with swin'):
        plot_parts(patch_model(vit(), "swin"))
    with pytest.raises(ValueError, match=r"names must be 5, one for each part, got \['head'\]"):
        plot_parts(model_with(), names=["head"])
    with pytest.raises(TypeError, match="plot_parts: image must be a tensor"):
        plot_parts(model_with(), "mean.png")
