"""What queries find: order, verdicts, frames, and which queries count as the hardest."""

import math

import numpy as np
import pytest
import torch
from albums import at_angles, picture
from findings.rankings import (
    COLUMNS,
    JUNK,
    RIGHT,
    WRONG,
    draw_hits,
    draw_looks,
    hardest_queries,
    has_contrast,
    ranked,
    shown,
    spread_queries,
)
from matplotlib.colors import to_rgba

from posenc.analysis import attention_rollout, capture_attention

GALLERY = [
    (2, 2, 0.3, None),
    (1, 1, 0.1, None),  # the same person by the same camera
    (1, 2, 0.2, None),
    (0, 3, 0.4, None),
]


def test_order_and_verdicts_with_junk_in_its_place(album):
    made = at_angles(album, [(1, 1, 0.0, None)], GALLERY)
    (hits,) = ranked(made, [0], junk=True)
    assert [hit.photo for hit in hits] == [made.data.gallery[i] for i in (1, 2, 0, 3)]
    assert [hit.verdict for hit in hits] == [JUNK, RIGHT, WRONG, WRONG]
    assert [hit.rank for hit in hits] == [None, 1, 2, 3]
    expected = [1 - math.cos(angle) for angle in (0.1, 0.2, 0.3, 0.4)]
    assert [hit.distance for hit in hits] == pytest.approx(expected, rel=1e-5)


def test_what_does_not_count_is_left_out_without_junk(album):
    made = at_angles(album, [(1, 1, 0.0, None)], GALLERY)
    (hits,) = ranked(made, [0], junk=False)
    assert [hit.photo for hit in hits] == [made.data.gallery[i] for i in (2, 0, 3)]
    assert [hit.rank for hit in hits] == [1, 2, 3]


def test_rows_are_those_of_their_queries(album):
    rows = [(1, 1, 0.0, None), (2, 1, 0.38, None)]
    both = ranked(at_angles(album, rows, GALLERY), [1, 0], junk=True)
    assert [hits[0].photo.person for hits in both] == [0, 1]


@pytest.mark.parametrize(("before", "ranks"), [(9, range(1, 11)), (10, [*range(1, 11), 11])])
def test_the_first_match_is_shown_though_it_comes_later(album, before, ranks):
    wrong = [(9, 2, 0.01 * i, None) for i in range(1, before + 1)]
    matches = [(1, 2, 1.0, None), (1, 3, 1.1, None)]
    made = at_angles(album, [(1, 1, 0.0, None)], [*wrong, *matches])
    (hits,) = map(shown, ranked(made, [0], junk=False))
    assert [hit.rank for hit in hits] == list(ranks)
    assert hits[-1].verdict is RIGHT


def test_frames_and_signs_are_those_of_the_hits(album):
    queries = spread_queries(album, 2)
    axes = np.array(draw_looks(album, queries, "title").axes).reshape(2, 2, COLUMNS)
    kinds = set()
    for (above, below), query, hits in zip(
        axes, queries, map(shown, ranked(album, queries, junk=True)), strict=True
    ):
        photo = album.data.query[query]
        assert above[0].get_title().startswith(f"person {photo.person}\nAP")
        assert np.array_equal(above[0].images[0].get_array(), album.image(photo))
        for upper, lower, hit in zip(above[1:], below[1:], hits, strict=False):
            assert np.array_equal(upper.images[0].get_array(), album.image(hit.photo))
            assert upper.get_title()[0] == hit.verdict.sign
            assert upper.get_title().endswith(f"{hit.distance:.2f}")
            for axis in (upper, lower):
                spine = axis.spines["left"]
                assert spine.get_edgecolor() == to_rgba(hit.verdict.color)
                assert (spine.get_linestyle() == "dashed") is (hit.verdict is JUNK)
            kinds.add(hit.verdict)
    assert kinds == {RIGHT, WRONG, JUNK}


def test_verdicts_differ_without_colors():
    assert len({one.sign for one in (RIGHT, WRONG, JUNK)}) == 3
    assert to_rgba(RIGHT.color)[2] > to_rgba(WRONG.color)[2] + 0.5  # blue against orange


def test_rollout_is_below_its_photo(album):
    (query,) = spread_queries(album, 1)
    above, below = np.array(draw_looks(album, [query], "title").axes).reshape(2, COLUMNS)
    (hits,) = map(shown, ranked(album, [query], junk=True))
    photos = [album.data.query[query], *(hit.photo for hit in hits)]
    images = torch.stack([torch.from_numpy(album.image(p)).permute(2, 0, 1) for p in photos])
    with capture_attention(album.network.vit) as captured, torch.no_grad():
        album.network.eval()(images)
    layout = captured.layouts["blocks.0.attn"]
    read = attention_rollout(captured.attention, layout, discard_ratio=0.5, pool="avg")
    assert len({one.argmax().item() for one in read}) > 1  # not all alike
    for photo, map_of, expected in zip(above, below, read, strict=False):
        np.testing.assert_allclose(map_of.images[1].get_array(), expected, rtol=1e-4)
        assert map_of.images[1].get_extent() == photo.images[0].get_extent()


def test_hits_without_rollout_are_a_line_each(album):
    queries = spread_queries(album, 3)
    figure = draw_hits(album, queries, "these")
    axes = np.array(figure.axes).reshape(3, COLUMNS)
    assert figure.get_suptitle() == "these"
    assert all(len(axis.images) == 1 for axis in axes[:, 0])
    titles = [axis.get_title() for axis in axes[:, 1:].flat]
    assert not any(title.startswith(JUNK.sign) for title in titles)


@pytest.fixture
def people(album, tmp_path):
    """Queries: without a match, fog, with matches in fog, a hard one, a second one, an easy one."""
    rng = np.random.default_rng(0)
    seen = picture(tmp_path / "seen.png", rng.integers(0, 256, (4, 2, 3)).repeat(8, 0).repeat(8, 1))
    fog = picture(tmp_path / "fog.png", 128 + rng.normal(0, 5, (32, 16, 3)))  # noise, and no one
    query = [
        (1, 1, 0.0, seen),
        (2, 1, 0.0, fog),
        (3, 1, 0.0, seen),
        (4, 1, 2.0, seen),
        (4, 2, 0.6, seen),
        (5, 1, 2.0, seen),
    ]
    gallery = [
        (1, 1, 0.0, seen),  # of the camera that took the query
        (2, 2, 1.5, seen),
        (3, 2, 1.4, fog),
        (3, 3, 1.6, fog),
        (4, 3, 1.3, seen),
        (5, 2, 2.0, seen),
    ]
    return at_angles(album, query, gallery)


def test_hardest_queries_could_be_seen_and_are_one_a_person(people):
    assert people.valid == [1, 2, 3, 4, 5]
    precision = people.average_precision
    assert precision[3] < precision[4] < precision[5] == 1  # the worse one of person 4 is shown
    assert hardest_queries(people, 6) == [3, 5]
    assert hardest_queries(people, 1) == [3]


def test_one_match_in_fog_does_not_hide_another(people, tmp_path):
    gallery = [(p.person, p.camera, 0.1 * i, p.path) for i, p in enumerate(people.data.gallery)]
    gallery.append((3, 4, 3.0, tmp_path / "seen.png"))
    query = [(p.person, p.camera, 0.0, p.path) for p in people.data.query]
    made = at_angles(people, query, gallery)
    assert 2 in hardest_queries(made, 6)


def test_contrast_is_that_of_what_is_there():
    rng = np.random.default_rng(1)
    wall = np.full((64, 32, 3), 90.0)
    assert not has_contrast(wall)
    assert not has_contrast(wall + rng.normal(0, 9, wall.shape))
    wall[16:48, 8:24] += 20
    assert has_contrast(wall)
