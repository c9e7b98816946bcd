"""Pictures and maps show what they say."""

import collections

import numpy as np
import pytest
import tiny_reid
import torch
from findings.maps import draw_maps, draw_rollout, read_images
from matplotlib import pyplot as plt
from pictures import draw, draw_bias, draw_parts, draw_similarity, draw_tsne, open_album
from training.run import train

import posenc
from posenc.analysis import attention_rollout, bias_map, capture_attention, position_similarity

SIZE = 32, 16


@pytest.mark.slow
def test_all_pictures_are_drawn(album, tmp_path):
    written = draw(album, tmp_path / "new")
    numbers = {"cmc", "distances", "learning"}
    names = {"rank10", "hardest", "rollout", "bias", "similarity", "parts", "tsne", *numbers}
    assert {path.stem for path in written} == {*names, "index"}
    for path in written[:-1]:
        picture = plt.imread(path)
        assert picture[..., :3].std() > 0.05, path  # something is on it


def test_one_picture_by_name(logged, folder, tmp_path, monkeypatch, capsys):
    import pictures

    options = ["--data", str(folder), "--out", str(tmp_path), "--only", "parts"]
    monkeypatch.setattr("sys.argv", ["pictures.py", str(logged), *options])
    pictures.main()
    assert [path.name for path in tmp_path.iterdir()] == ["parts.png"]
    assert "parts.png" in capsys.readouterr().out


def test_pictures_without_what_they_show_are_left_out(data, tmp_path):
    train(tiny_reid.config(encoding="none"), data, tmp_path, quiet=True)
    written = draw(open_album(tmp_path, data), tmp_path)
    assert {path.stem for path in written} == {
        *("rank10", "hardest", "cmc", "distances", "rollout", "tsne", "index")
    }


def test_part_centers_are_drawn_where_they_are(album):
    encodings = [
        e for name, e in posenc.patched_encodings(album.network.vit).items() if "human" in name
    ]
    with torch.no_grad():
        gaps = torch.tensor([0.1, 0.2, 0.2, 0.2, 0.2, 0.1])
        encodings[1].part_spacing.copy_(gaps.log())
    axis = draw_parts(album).axes[1]
    photo = axis.images[0].get_array()
    assert (photo.min(), photo.max()) == (0, 1)  # a mean of photos has little contrast
    lines = [line.get_ydata()[0] for line in axis.lines]
    assert lines == pytest.approx([2.7, 9.1, 15.5, 21.9, 28.3], rel=1e-5)  # pixel 0 begins at -0.5


def test_similarity_of_learned_positions(album):
    (table,) = album.encodings(posenc.LearnedAbsolute).values()
    with torch.no_grad():
        table.table.copy_(torch.randn(table.table.shape))
    (axis, _) = draw_similarity(album).axes
    maps = position_similarity(table, table.layout).detach().numpy()
    assert maps.shape == (4, 2, 4, 2)
    drawn = axis.images[0].get_array()
    for row, column in np.ndindex(4, 2):
        shown = drawn[4 * row : 4 * row + 4, 2 * column : 2 * column + 2]
        np.testing.assert_allclose(shown, maps[row, column], atol=1e-6)


def test_people_of_the_map_have_colors(album):
    (axis,) = draw_tsne(album).axes
    people = [photo.person for photo in (*album.data.query, *album.data.gallery) if photo.person]
    frames = [box.patch.get_edgecolor() for box in axis.artists]
    assert len(frames) == len(people)  # four, each with all of its photos
    pairs = collections.Counter(zip(people, frames, strict=True))
    assert set(pairs.values()) == {4}
    assert len(pairs) == len(set(frames)) == len(set(people)) == 4


def test_rollout_is_over_the_crop(album):
    images = read_images(album.data.query[:3], album.network, SIZE)
    was = album.network.training
    axes = np.array(draw_rollout(album.network, images).axes).reshape(2, 3)
    assert album.network.training is was
    with capture_attention(album.network.vit) as captured, torch.no_grad():
        album.network(images)
    layout = captured.layouts["blocks.0.attn"]
    read = attention_rollout(captured.attention, layout, discard_ratio=0.5, pool="avg")
    for above, below, image, grid in zip(*axes, images, read, strict=True):
        assert np.array_equal(above.images[0].get_array(), image.permute(1, 2, 0))
        np.testing.assert_allclose(below.images[1].get_array(), grid, rtol=1e-5)
        assert below.images[1].get_extent() == above.images[0].get_extent()


def test_bias_is_the_mean_over_photos(album):
    figure = draw_bias(album)
    images = read_images(album.data.query[:16], album.network, SIZE)
    with capture_attention(album.network.vit) as captured, torch.no_grad():
        album.network.eval()(images)
    name, bias = next(iter(captured.bias.items()))
    expected = bias_map(bias.mean(0), captured.layouts[name], (2, 1))
    for axis, one in zip(figure.axes, expected, strict=False):
        np.testing.assert_allclose(axis.images[0].get_array(), one, atol=1e-6)


def test_pictures_for_trackers(album):
    before = plt.get_fignums()
    pictures = draw_maps(album.network, album.data.query[:3], SIZE)
    assert set(pictures) == {"rollout", "bias of the center", "similarity, learned"}
    for picture in pictures.values():
        assert (picture.dtype, picture.shape[0], picture.shape[3]) == (np.uint8, 1, 3)
        assert picture.std() > 10  # something is on it
    assert plt.get_fignums() == before
