"""Street people: shares as written down, muted colors, people that can be told apart."""

import collections
import hashlib
import io
import itertools

import numpy as np
import pytest
from generate import drawn_photos
from people.street.cameras import (
    color_matrix,
    draw_cameras,
    photograph,
    photograph_as,
    photograph_nobody,
)
from people.street.identities import Person, draw_people
from people.street.shares import PERSON, PHOTO, Choice, choose
from people.wardrobes import WARDROBES
from PIL import Image
from tiny_reid import RECIPE as TINY

MANY = 2000
PIXELS = "064e47d7c77e6db4355301dfec7ad16e43624d61be1d07949114f727004d5e51"
PLAIN = {
    "view": "front",
    "facing": "right",
    "arms": "hanging",
    "figure": "whole",
    "before": "nothing",
    "behind": "nobody",
    "covered": "left",
}


@pytest.fixture(scope="module")
def people():
    return draw_people(MANY, 0)


def photo(person, camera, number, **words):
    rng = np.random.default_rng(number)
    picture = photograph_as({**PLAIN, **words}, person, camera, rng)
    return np.asarray(picture).astype(float)


def check_shares(choices, drawn):
    """Each share within five standard deviations of those it applies to."""
    for choice in choices:
        asked = [words for words in drawn if choice.applies(words)]
        assert len(asked) > 30, choice.name
        counts = collections.Counter(words[choice.name] for words in asked)
        assert set(counts) <= set(choice.shares)
        for word, share in choice.shares.items():
            error = (share * (1 - share) / len(asked)) ** 0.5
            found = counts[word] / len(asked)
            assert abs(found - share) < 5 * error, (choice.name, word, share, found)


def test_people_have_the_shares(people):
    check_shares(PERSON, [person.looks for person in people])


def test_photos_have_the_shares():
    """Among them occlusion by people and things, and partial figures."""
    check_shares(PHOTO, [choose(PHOTO, np.random.default_rng([1, i])) for i in range(MANY)])


def test_every_share_has_a_source_and_sums_are_1():
    assert all(choice.source for choice in PERSON + PHOTO)
    with pytest.raises(ValueError, match=r"shares of hat must add up to 1, got 0\.9"):
        Choice("hat", {"none": 0.9}, "by eye")


def test_dark_and_gray_prevail(people):
    muted = {"black", "dark gray", "gray", "navy", "white", "denim", "dark denim", "light denim"}
    for choice in ("top color", "leg color"):
        words = [person.looks[choice] for person in people if choice in person.looks]
        assert sum(word in muted for word in words) / len(words) > 0.7


def test_same_seed_same_people_and_photos(people):
    assert draw_people(20, 0) == people[:20]
    assert draw_people(20, 1) != people[:20]
    first, again = (draw_cameras(2, 3)[1] for _ in range(2))
    assert first == again
    same, equal, different = (
        photograph(people[0], camera, np.random.default_rng(5))[0].tobytes()
        for camera in (first, again, draw_cameras(2, 4)[1])
    )
    assert same == equal != different


def test_nobody_looks_like_another(people):
    """In what can be seen: there is no color of a hat that nobody wears."""
    assert len({tuple(person.looks.items()) for person in people}) == MANY
    for person in people:
        assert ("hat color" in person.looks) == (person.looks["hat"] != "none")
        assert ("bag color" in person.looks) == (person.looks["bag"] != "none")


def test_twins_are_drawn_again(monkeypatch):
    """Where two people would look alike, the second is drawn again."""
    twins = iter("aabbc")

    def drawn(rng):
        return Person({"top": next(twins)}, {}, 1, 1, 1, 1)

    monkeypatch.setattr("people.street.identities.draw_person", drawn)
    assert [person.looks["top"] for person in draw_people(3, 0)] == ["a", "b", "c"]


@pytest.mark.parametrize(
    "choice",
    ["hair", "haircut", "top", "top color", "leg color", "legwear", "shoes", "bag", "print", "hat"],
)
def test_what_a_person_wears_is_seen(people, choice):
    """Two people who differ in one choice differ on photos by the same camera in the same pose."""
    camera = draw_cameras(1, 0)[0]
    seen = 0
    for first, second in itertools.pairwise(p for p in people[:300] if choice in p.looks):
        if first.looks[choice] == second.looks[choice]:
            continue
        seen += 1
        assert np.abs(photo(first, camera, 1) - photo(second, camera, 1)).max() > 20
        if seen == 5:
            return
    raise AssertionError(f"nobody differs in {choice}")


def test_a_person_is_more_like_himself(people):
    """Mean colors of the trunk and the legs, before two cameras, against those of others."""
    cameras = draw_cameras(2, 0)
    rows = slice(40, 60), slice(75, 100)

    def colors(camera):
        crops = [photo(person, camera, 2)[:, 24:40] for person in people[:60]]
        means = np.array([[crop[r].mean((0, 1)) for r in rows] for crop in crops]).reshape(60, -1)
        return (means - means.mean(0)) / means.std(0)

    one, other = (colors(camera) for camera in cameras)
    distances = np.linalg.norm(one[:, None] - other[None], axis=-1)
    ranks = (distances < distances.diagonal()[:, None]).sum(1)
    assert np.median(ranks) < 6  # of 60; 30 by chance


def saturation(name):
    wardrobe, crops = WARDROBES[name], []
    people, cameras = wardrobe.draw_people(60, 0), wardrobe.draw_cameras(6, 0)
    for number, person in enumerate(people):
        camera = cameras[number % 6]
        picture, _ = wardrobe.photograph(person, camera, np.random.default_rng(number))
        crops.append(np.asarray(picture.convert("HSV"))[..., 1] / 255)
    return np.mean(crops)


def test_colors_are_muted():
    assert saturation("street") < 0.5 * saturation("toy")


def test_cameras_are_near_neutral():
    gray = Image.new("RGB", (1, 1), (120, 120, 120))
    for camera in draw_cameras(9, 0):
        r, g, b = gray.convert("RGB", color_matrix(camera, 1.0, 0.0)).getpixel((0, 0))
        assert max(r, g, b) - min(r, g, b) < 0.15 * g
        assert 45 <= camera.quality < 85


@pytest.mark.parametrize(("before", "least"), [("person", 0.04), ("low", 0.15), ("post", 0.05)])
def test_occlusion_hides_a_part(people, before, least):
    camera = draw_cameras(1, 0)[0]
    shares = []
    for number, person in enumerate(people[:20]):
        whole = photo(person, camera, number)
        hidden = photo(person, camera, number, before=before)
        shares.append((np.abs(hidden - whole).max(-1) > 30).mean())
    assert least < np.mean(shares) < 0.6


def test_a_partial_figure_has_no_feet(people):
    """Shoes of a color that nothing else has."""
    camera = draw_cameras(1, 0)[0]
    person = next(p for p in people if p.is_a("shoes", "sneakers"))
    marked = Person(person.looks, {**person.colors, "shoes": (0, 255, 0)}, 0.9, 0.6, 0.5, 1.0)

    def greens(figure):
        crop = photo(marked, camera, 0, figure=figure)
        return (crop[..., 1] > crop[..., [0, 2]].max(-1) + 60).sum()

    assert greens("whole") > 20
    assert greens("partial") == 0


def test_somebody_behind_is_seen(people):
    camera = draw_cameras(1, 0)[0]
    alone, two = (photo(people[0], camera, 0, behind=who) for who in ("nobody", "person"))
    assert (np.abs(two - alone).max(-1) > 30).mean() > 0.02


@pytest.mark.parametrize("bag", ["backpack", "shoulder", "hand", "carrier"])
def test_bags_are_on_their_side(people, bag):
    """The person's left is on the right of a picture from the front, on the left from behind."""
    camera = draw_cameras(1, 0)[0]
    person = next(p for p in people if p.is_a("bag", bag) and p.is_a("build", "average"))
    colors = {**person.colors, "bag color": (220, 60, 60)}
    person = Person({**person.looks, "bag side": "left"}, colors, 0.9, 0.6, 0.5, 1.0)
    without = Person({**person.looks, "bag": "none"}, person.colors, 0.9, 0.6, 0.5, 1.0)
    for view, side in (("front", 1), ("back", -1)):
        change = np.abs(photo(person, camera, 0, view=view) - photo(without, camera, 0, view=view))
        _, columns = np.nonzero(change[25:95].max(-1) > 25)
        middle = columns.mean() - 32
        assert len(columns) > 10
        assert abs(middle) < 4 if bag == "backpack" else side * middle > 4, (view, middle)


def test_photos_are_compressed(folder):
    """At the quality of their camera, below that of toy photos."""
    qualities = {camera.quality for camera in draw_cameras(2, 0)}
    person = draw_people(1, 0)[0]
    camera = draw_cameras(2, 0)[1]
    file = io.BytesIO()
    picture, _ = photograph(person, camera, np.random.default_rng([0, 4, 1, 0]))
    picture.save(file, "JPEG", quality=camera.quality)
    written = folder / "bounding_box_train" / "0001_c2s1_000000_00.jpg"
    assert written.read_bytes() == file.getvalue()
    assert max(qualities) < 95


def test_photos_are_those_of_the_experiment():
    """The hash was stored at commit c4ea214, before views were written."""
    pixels = hashlib.sha256()
    for path, picture, quality, _ in drawn_photos(TINY):
        pixels.update(path.encode() + picture.tobytes() + bytes([quality]))
    assert pixels.hexdigest() == PIXELS


def test_nobody_is_a_photo_too():
    camera = draw_cameras(1, 0)[0]
    crop = np.asarray(photograph_nobody(camera, np.random.default_rng(0)))
    assert crop.shape == (128, 64, 3)
    assert crop.std() > 5
