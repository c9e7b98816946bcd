"""Synthetic pedestrians: the folders of Market-1501, the same for the same seed."""

import collections
import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from data.market import DISTRACTOR
from generate import RECIPE, Recipe, write
from people.toy.cameras import draw_cameras, photograph
from people.toy.drawing import Figure, Frame, Stance
from people.toy.identities import GROUP, draw_people
from PIL import Image
from tiny_reid import RECIPE as TINY


def digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def test_the_reader_finds_what_was_drawn(data):
    assert {photo.person for photo in data.train} == set(range(1, 9))
    assert {photo.person for photo in data.query} == set(range(9, 13))
    assert len(data.train) == 8 * 4
    assert len(data.query) == 4 * 2  # one for each camera
    counts = collections.Counter(photo.person for photo in data.gallery)
    assert counts == {DISTRACTOR: 2, **dict.fromkeys(range(9, 13), 2)}  # no junk
    for person in range(9, 13):
        of_query = {photo.camera for photo in data.query if photo.person == person}
        assert of_query == {1, 2} == {p.camera for p in data.gallery if p.person == person}


def test_same_seed_same_bytes(folder, tmp_path):
    write(tmp_path / "again", TINY)
    write(tmp_path / "other", replace(TINY, seed=1))
    assert digest(tmp_path / "again") == digest(folder)
    first, other = (
        digest(path)["query/0009_c2s1_000000_00.jpg"] for path in (folder, tmp_path / "other")
    )
    assert first != other


def test_nothing_of_the_user_is_overwritten(folder, tmp_path):
    before = digest(folder)
    write(folder, TINY)  # is there already
    with pytest.raises(ValueError, match=r"not empty and not these data \(recipe.json\)"):
        write(folder, replace(TINY, photos=5))
    assert digest(folder) == before
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="use another folder"):
        write(tmp_path, TINY)


def test_an_interrupted_drawing_is_noticed(folder, tmp_path):
    write(tmp_path / "data", TINY)
    (tmp_path / "data" / RECIPE).unlink()
    with pytest.raises(ValueError, match="not empty"):
        write(tmp_path / "data", TINY)
    assert json.loads((folder / RECIPE).read_text())["seed"] == 0


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"train_people": 6}, "train_people must be a multiple of 4, got 6"),
        ({"test_people": 0}, "test_people must be a multiple of 4, got 0"),
        ({"cameras": 1}, "cameras must be 2 to 9, got 1"),
        ({"cameras": 3, "photos": 2}, "one for each of 3 cameras, got 2"),
    ],
)
def test_refused(change, rule):
    with pytest.raises(ValueError, match=rule):
        Recipe(**{**{"cameras": 2, "photos": 4}, **change})


def test_groups_share_colours_at_other_places():
    people = draw_people(40, 3)
    assert people[:8] == draw_people(8, 3)
    for start in range(0, 40, GROUP):
        group = people[start : start + GROUP]
        sets = {frozenset([p.upper, p.lower, p.second, p.shoes, p.marks[0].colour]) for p in group}
        assert len(sets) == 1
        assert len(next(iter(sets))) == 5
        assert len({p.upper for p in group}) == GROUP
        assert all(p.upper != p.lower for p in group)
    assert len(set(people)) == 40


def drawn(person, view, facing=1):
    picture = Image.new("RGB", (64, 128))
    stance = Stance(view=view, facing=facing, phase=1.0, stride=0.3)
    Figure(picture, person, stance, Frame(center=32, top=0, head=16)).draw()
    return np.asarray(picture).astype(int)


def marked(part, side):
    (plain,) = draw_people(1, 0)
    plain = replace(plain, bag="none", pattern="plain", legwear="trousers", leg_pattern="plain")
    return replace(plain, marks=()), replace(
        plain,
        marks=(replace(draw_people(1, 0)[0].marks[0], part=part, side=side, colour=(1, 2, 3)),),
    )


@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize(("part", "row"), [("arm", 2.0), ("thigh", 4.9), ("shin", 6.8)])
def test_marks_are_where_they_belong(part, row, side):
    """The person's left is on the right of a picture from the front, on the left from behind."""
    plain, person = marked(part, side)
    for view, left in (("front", 1), ("back", -1)):
        rows, columns = np.nonzero((drawn(person, view) != drawn(plain, view)).any(-1))
        assert abs(rows.mean() / 16 - row) < 0.4
        assert np.sign(columns.mean() - 32) == side * left


def test_marks_on_the_chest_are_not_seen_from_behind():
    plain, person = marked("chest", 1)
    assert (drawn(person, "front") != drawn(plain, "front")).any()
    assert (drawn(person, "back") == drawn(plain, "back")).all()


def test_marks_on_the_far_side_are_not_seen():
    """Who walks to the right of the picture shows the right side."""
    plain, person = marked("thigh", -1)
    assert (drawn(person, "side", 1) != drawn(plain, "side", 1)).any()
    assert (drawn(person, "side", -1) == drawn(plain, "side", -1)).all()


@pytest.mark.parametrize(("view", "pixels"), [("front", 100), ("back", 400), ("side", 250)])
def test_backpacks_are_seen_from_everywhere(view, pixels):
    plain, _ = marked("arm", 1)
    person = replace(plain, bag="backpack", bag_colour=(1, 2, 3))
    assert (drawn(person, view) == (1, 2, 3)).all(-1).sum() > pixels


def test_photos_differ_but_not_for_the_same_generator():
    (person,), (first, second) = draw_people(1, 0), draw_cameras(2, 0)

    def photo(camera, number):
        rng = np.random.default_rng(number)
        return np.asarray(photograph(person, camera, rng)).astype(float)

    assert photo(first, 0).shape == (128, 64, 3)
    assert (photo(first, 0) == photo(first, 0)).all()
    assert np.abs(photo(first, 0) - photo(first, 1)).mean() > 5
    assert np.abs(photo(first, 0) - photo(second, 0)).mean() > 5
