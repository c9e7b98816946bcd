"""plot_similarity draws `position_similarity`."""

import warnings

import numpy as np
import pytest
import tiny_global
import tiny_windowed
import torch
from drawn import bars, marked, numbers, panels
from matplotlib.figure import Figure
from tiny_vit import vit
from torch.nn.functional import cosine_similarity

from posenc import LearnedAbsolute, Sinusoidal, TokenLayout, patch_model, patched_encodings
from posenc.analysis import position_similarity
from posenc.analysis.plot import plot_similarity

LAYOUT = TokenLayout(3, 5, prefix=1)
TABLE = torch.randn(16, 8, generator=torch.Generator().manual_seed(0)) + 1


def maps_in(mosaic):
    """`[3, 5, 3, 5]` of the image of all maps."""
    return mosaic.reshape(3, 3, 5, 5).transpose(0, 2, 1, 3)


def drawn_maps(*args, **options):
    (ax,) = panels(plot_similarity(*args, **options, figure=Figure()))
    return maps_in(numbers(ax))


@pytest.mark.parametrize("center", [False, True])
def test_all_maps_in_one_image(center):
    figure = plot_similarity(TABLE, LAYOUT, center=center, figure=Figure())
    (ax,) = panels(figure)
    rows = TABLE[1:] - (TABLE[1:].mean(0) if center else 0)
    expected = cosine_similarity(rows[:, None], rows[None], dim=-1).view(3, 5, 3, 5)
    np.testing.assert_allclose(maps_in(numbers(ax)), expected, atol=1e-6)
    assert ax.images[0].get_clim() == (-1, 1)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("column of the patch", "row of the patch")
    assert ax.get_xticks().tolist() == [2, 7, 12, 17, 22]
    assert ax.get_yticks().tolist() == [1, 4, 7]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0", "1", "2"]
    between = [line.get_xydata() for line in ax.lines]
    assert [xy[0, 1] for xy in between[:2]] == [2.5, 5.5]
    assert [xy[0, 0] for xy in between[2:]] == [4.5, 9.5, 14.5, 19.5]
    assert bars(figure)[0].get_ylabel() == "cosine"


def test_some_queries():
    places = [(1, 2), (0, 0), (2, 4)]
    shown = panels(plot_similarity(TABLE, LAYOUT, queries=places, figure=Figure()))
    maps = position_similarity(TABLE, LAYOUT)
    for ax, place in zip(shown, places, strict=True):
        np.testing.assert_allclose(numbers(ax), maps[place])
        assert marked(ax) == (place, (1, 1))
        assert ax.get_title() == str(place)


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize("options", [{}, {"no_embed_class": True}, {"dynamic_img_size": True}])
def test_the_table_of_a_model(prefix, options):
    model = vit(prefix, **options)
    table = model.pos_embed.detach()[0, -15:]
    np.testing.assert_allclose(drawn_maps(model), position_similarity(table, TokenLayout(3, 5)))
    patch_model(model, "swin")
    np.testing.assert_allclose(drawn_maps(model), position_similarity(table, TokenLayout(3, 5)))


@pytest.mark.parametrize(
    ("name", "table", "grid"),
    [("sam", "pos_embed", (3, 5)), ("naflex", "embeds.pos_embed", (4, 4))],
)
def test_a_table_with_rows_and_columns(name, table, grid):
    """On its own grid: the second is resampled to that of the images."""
    model = tiny_global.build(name)
    rows = model.get_parameter(table).detach()[0].flatten(0, 1)
    (ax,) = panels(plot_similarity(model, figure=Figure()))
    expected = position_similarity(rows, TokenLayout(*grid)).transpose(1, 2).flatten(0, 1)
    np.testing.assert_allclose(numbers(ax), expected.flatten(1), rtol=1e-6)


@pytest.mark.parametrize("name", ["learned", "sinusoidal"])
def test_an_encoding_before_the_table_of_the_model(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one of them has an effect from the start
        model = patch_model(vit(), name, absolute="hide")
    encoding = patched_encodings(model)[name]
    torch.nn.init.normal_(next(encoding.parameters()))
    expected = position_similarity(encoding, LAYOUT)
    np.testing.assert_allclose(drawn_maps(model), expected)
    np.testing.assert_allclose(drawn_maps(encoding), expected)


def test_an_encoding_on_another_grid():
    encoding = LearnedAbsolute(TokenLayout(4, 2, prefix=1), 8)
    torch.nn.init.normal_(encoding.table)
    np.testing.assert_allclose(
        drawn_maps(encoding, LAYOUT), position_similarity(encoding, LAYOUT), rtol=1e-6
    )


def test_centering_is_of_the_patches_only():
    similarity = position_similarity(TABLE, LAYOUT, center=True)
    moved = TABLE + 7
    moved[0] = 100
    torch.testing.assert_close(position_similarity(moved, LAYOUT, center=True), similarity)
    with pytest.raises(ValueError, match=r"the row of the patch at \(0, 0\) is zero"):
        position_similarity(torch.ones(15, 4), TokenLayout(3, 5), center=True)


def test_refusals():
    with pytest.raises(ValueError, match="pass layout= with a table"):
        plot_similarity(TABLE)
    with pytest.raises(TypeError, match="source must be a model, an encoding or a table, got str"):
        plot_similarity("learned")
    with pytest.raises(ValueError, match="VisionTransformer has no table of absolute positions"):
        plot_similarity(vit(pos_embed="none"))
    with pytest.raises(ValueError, match="has no table of absolute positions"):
        plot_similarity(tiny_windowed.build("swin"))
    with pytest.raises(ValueError, match=r"table is \[.*\], not a row a patch of .*: pass"):
        plot_similarity(tiny_global.build("gemma"))
    with pytest.raises(ValueError, match=r"\(0, 0\) is zero"):
        plot_similarity(LearnedAbsolute(LAYOUT, 8))
    with pytest.raises(ValueError, match=r"query=\(3, 0\) is not in the layout"):
        plot_similarity(Sinusoidal(LAYOUT, 8), queries=[(3, 0)])
    with pytest.raises(ValueError, match=r"queries must be \(row, column\) of patches, got 0"):
        plot_similarity(TABLE, LAYOUT, queries=[0])
    with pytest.raises(ValueError, match="queries must name at least one patch"):
        plot_similarity(TABLE, LAYOUT, queries=[])


def test_a_model_with_several_tables():
    with pytest.warns(UserWarning, match="posenc"):
        model = patch_model(vit(), "learned+sinusoidal", absolute="hide")
    with pytest.raises(ValueError, match=r"several tables \(learned, sinusoidal\): pass one"):
        plot_similarity(model)
