"""Pictures and maps show what they say."""

import numpy as np
import pytest
import tiny_reid
import torch
from maps import bias_maps, coloured, draw_maps, read_images, rollout_maps
from matplotlib import pyplot as plt
from pictures import RIGHT, WRONG, draw, draw_hardest, draw_parts, draw_similarity, open_album
from train import train

import posenc
from posenc import TokenLayout
from posenc.analysis import attention_rollout, capture_attention

SIZE = 32, 16


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("run")
    train(tiny_reid.config(), data, out, quiet=True)
    return out


@pytest.fixture
def album(run, data):
    album = open_album(run, data)
    yield album
    plt.close("all")


@pytest.mark.slow
def test_all_pictures_are_drawn(album, tmp_path):
    written = draw(album, tmp_path / "new")
    names = {"rank10", "hardest", "rollout", "bias", "similarity", "parts", "tsne"}
    assert {path.stem for path in written} == names
    for path in written:
        picture = plt.imread(path)
        assert picture[..., :3].std() > 0.05, path  # something is on it


def test_one_picture_by_name(run, folder, tmp_path, monkeypatch, capsys):
    import pictures

    options = ["--data", str(folder), "--out", str(tmp_path), "--only", "parts"]
    monkeypatch.setattr("sys.argv", ["pictures.py", str(run), *options])
    pictures.main()
    assert [path.name for path in tmp_path.iterdir()] == ["parts.png"]
    assert "parts.png" in capsys.readouterr().out


def test_pictures_without_what_they_show_are_left_out(data, tmp_path):
    train(tiny_reid.config(encoding="none"), data, tmp_path, quiet=True)
    written = draw(open_album(tmp_path, data), tmp_path)
    assert {path.stem for path in written} == {"rank10", "hardest", "rollout", "tsne"}


def test_frames_tell_right_from_wrong(album):
    figure = draw_hardest(album)
    rows = np.array(figure.axes).reshape(-1, 11)
    order = album.scores.average_precision.argsort()[: len(rows)]
    valid = album.scores.is_valid.nonzero()[:, 0]
    for row, query in zip(rows, valid[order].tolist(), strict=True):
        person = album.data.query[query].person
        assert row[0].get_title().startswith(f"{person}, AP")
        distances = [float(axis.get_title()) for axis in row[1:] if axis.get_title()]
        assert distances == sorted(distances)
        kept = [
            p
            for p in album.data.gallery
            if (p.person, p.camera) != (person, album.data.query[query].camera)
        ]
        colours = [axis.spines["left"].get_edgecolor() for axis in row[1 : len(distances) + 1]]
        right = sum(np.allclose(c, plt.matplotlib.colors.to_rgba(RIGHT)) for c in colours)
        wrong = sum(np.allclose(c, plt.matplotlib.colors.to_rgba(WRONG)) for c in colours)
        assert right + wrong == len(distances) == min(10, len(kept))
        assert right == sum(p.person == person for p in kept)  # all fit into ten


def test_part_centers_are_drawn_where_they_are(album):
    encodings = [
        e for name, e in posenc.patched_encodings(album.network.vit).items() if "human" in name
    ]
    with torch.no_grad():
        encodings[1].part_centers.copy_(torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9]))
    axis = draw_parts(album).axes[1]
    lines = [line.get_ydata()[0] for line in axis.lines]
    assert lines == pytest.approx([3.2, 9.6, 16, 22.4, 28.8], rel=1e-5)
    with torch.no_grad():
        encodings[1].part_centers[4] = 1.3
    assert draw_parts(album).axes[1].get_xlabel() == "outside:\nshins at 1.30"


def test_similarity_of_learned_positions(album):
    (table,) = album.encodings(posenc.LearnedAbsolute).values()
    with torch.no_grad():
        table.table.copy_(torch.randn(table.table.shape))
    figure = draw_similarity(album)
    shown = [axis.images[0].get_array() for axis in figure.axes if axis.images]
    assert len(shown) == 8
    for place, picture in enumerate(shown):
        assert picture.shape == (4, 2)
        assert picture.flat[place] == pytest.approx(1, abs=1e-5)
        assert np.abs(np.delete(picture.flatten(), place)).max() < 0.99


def test_rollout_is_over_the_crop(album):
    images = read_images(album.data.query[:3], album.network, SIZE)
    was = album.network.training
    maps = rollout_maps(album.network, images)
    assert maps.shape == (3, *SIZE)
    assert album.network.training is was
    for one in maps:
        assert one.min() == 0
        assert one.max() == pytest.approx(1)
    with capture_attention(album.network.vit) as captured, torch.no_grad():
        album.network(images)
    layout = captured.layouts["blocks.0.attn"]
    read = attention_rollout(captured.attention, layout, discard_ratio=0.5, pool="avg")
    for one, grid in zip(maps, read, strict=True):
        # the centers of the patches, stretched as the map is
        shown = one.view(4, 8, 2, 8)[:, 3:5, :, 3:5].mean((1, 3))
        assert torch.corrcoef(torch.stack([shown.flatten(), grid.flatten()]))[0, 1] > 0.99


def test_bias_maps_show_the_bias(data):
    from network import build_network

    network = build_network(tiny_reid.config(encoding="swin"), 4)
    images = read_images(data.query[:2], network, SIZE)
    encodings = posenc.patched_encodings(network.vit)
    for encoding in encodings.values():
        torch.nn.init.normal_(encoding.table)
    maps = bias_maps(network, images, (0.5, 0.5))
    assert maps.shape == (2, 2, 4, 2)  # layers, heads, grid
    layout = TokenLayout(4, 2, 1)
    q = torch.zeros(1, 2, 9, 12)
    for layer, encoding in enumerate(encodings.values()):
        (term,) = encoding(q, q, layout)
        row = term.dense()[0, :, 1 + 2 * 2 + 1]  # the patch in row 2 and column 1
        expected = (row - row.mean(-1, keepdim=True))[:, 1:].view(2, 4, 2)
        torch.testing.assert_close(maps[layer], expected)


def test_bias_maps_of_a_contextual_encoding(data):
    from network import build_network

    network = build_network(tiny_reid.config(encoding="irpe"), 4)
    for encoding in posenc.patched_encodings(network.vit).values():
        torch.nn.init.normal_(
            encoding.table_k if hasattr(encoding, "table_k") else next(encoding.parameters())
        )
    images = read_images(data.query[:2], network, SIZE)
    first, both = bias_maps(network, images[:1], (0, 0)), bias_maps(network, images, (0, 0))
    second = bias_maps(network, images[1:], (0, 0))
    torch.testing.assert_close(both, (first + second) / 2)
    assert first.abs().max() > 0.01


def test_pictures_for_trackers(album):
    pictures = draw_maps(album.network, album.data.query[:3], SIZE)
    assert set(pictures) == {"rollout", "bias of the center", "similarity, learned"}
    assert pictures["similarity, learned"].shape == (1, 4 * 26, 2 * 14, 3)  # a map for each patch
    assert pictures["rollout"].shape == (1, 34, 6 * 18, 3)
    assert all(picture.dtype == np.uint8 for picture in pictures.values())


def test_zero_is_in_the_middle_of_the_colours():
    picture = coloured(torch.tensor([[-2.0, 0.0, 1.0]]))
    assert np.ptp(picture[0, 1].astype(int)) < 4  # grey
    assert picture[0, 0, 2] > picture[0, 0, 0]  # blue
    assert picture[0, 2, 0] > picture[0, 2, 2]  # red
