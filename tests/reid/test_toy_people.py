"""Toy people: groups that share bright colors; drawn as they always were."""

import hashlib
import io
from dataclasses import replace

import numpy as np
import pytest
from generate import TRAIN, drawn_photos, write
from people.toy.cameras import draw_cameras, photograph
from people.toy.drawing import Figure, Frame, Stance
from people.toy.identities import GROUP, draw_people
from PIL import Image
from tiny_reid import RECIPE as TINY

TOY = replace(TINY, wardrobe="toy")
PIXELS = "58d15c048db35f28a4e8b4d40d9199bd089a79266988e1dd09b7a5e872d0544e"


def test_photos_are_those_of_the_first_generator():
    """The hash was stored at commit bae3c92, before there were other people."""
    pixels = hashlib.sha256()
    for path, photo, quality, _ in drawn_photos(TOY):
        pixels.update(path.encode() + photo.tobytes())
        assert quality == 95
    assert pixels.hexdigest() == PIXELS


def test_files_are_these_photos(tmp_path):
    write(tmp_path / "toy", TOY)
    path, photo, quality, _ = next(iter(drawn_photos(TOY)))
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=quality)
    assert path.startswith(TRAIN)
    assert (tmp_path / "toy" / path).read_bytes() == file.getvalue()


def test_groups_share_colors_at_other_places():
    people = draw_people(40, 3)
    assert people[:8] == draw_people(8, 3)
    for start in range(0, 40, GROUP):
        group = people[start : start + GROUP]
        sets = {frozenset([p.upper, p.lower, p.second, p.shoes, p.marks[0].color]) for p in group}
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
        marks=(replace(draw_people(1, 0)[0].marks[0], part=part, side=side, color=(1, 2, 3)),),
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
    person = replace(plain, bag="backpack", bag_color=(1, 2, 3))
    assert (drawn(person, view) == (1, 2, 3)).all(-1).sum() > pixels


def test_photos_differ_but_not_for_the_same_generator():
    (person,), (first, second) = draw_people(1, 0), draw_cameras(2, 0)

    def photo(camera, number):
        rng = np.random.default_rng(number)
        return np.asarray(photograph(person, camera, rng)[0]).astype(float)

    assert photo(first, 0).shape == (128, 64, 3)
    assert (photo(first, 0) == photo(first, 0)).all()
    assert np.abs(photo(first, 0) - photo(first, 1)).mean() > 5
    assert np.abs(photo(first, 0) - photo(second, 0)).mean() > 5
