"""Synthetic pedestrians: the folders of Market-1501, the same for the same seed."""

import collections
import hashlib
import json
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
from data.market import DISTRACTOR, NO_VIEW, read_dataset
from generate import RECIPE, SEEN_FROM, Recipe, draw_sheet, drawn_photos, write
from people.street.shares import PHOTO, choose
from people.toy import cameras as toy_cameras
from PIL import Image
from search.features import check_has_answers
from tiny_reid import RECIPE as TINY
from training.photos import list_photos


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


def test_views_are_those_drawn(data):
    """Of each photo but junk: `SEEN_FROM` by number, as the pose was chosen."""
    for photo in data.train:
        number, shot = photo.person, int(photo.path.name.split("_")[2])
        words = choose(PHOTO, np.random.default_rng([0, 4, number, shot]))
        assert SEEN_FROM[photo.view] == words["view"]
    assert {photo.view for photo in (*data.query, *data.gallery)} == {0, 1, 2}


def test_views_of_toy_people(monkeypatch, tmp_path):
    stances = []

    class Watched(toy_cameras.Figure):
        def __init__(self, picture, person, stance, frame):
            stances.append(stance)
            super().__init__(picture, person, stance, frame)

    monkeypatch.setattr(toy_cameras, "Figure", Watched)
    drawn = [one for one in drawn_photos(replace(TINY, wardrobe="toy")) if one.view]
    assert [one.view for one in drawn] == [stance.view for stance in stances]
    assert len({one.view for one in drawn}) == 3


def test_a_folder_without_views_is_taken_as_it_is(folder, tmp_path):
    """Those of before have none; a training that has seen their photos goes on with either."""
    shutil.copytree(folder, tmp_path / "older")
    (tmp_path / "older" / "views.csv").unlink()
    write(tmp_path / "older", TINY)
    assert not (tmp_path / "older" / "views.csv").exists()
    older, now = read_dataset(tmp_path / "older"), read_dataset(folder)
    assert older.train[0].view == NO_VIEW != now.train[0].view
    assert list_photos(older.train) == list_photos(now.train)


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


def test_each_wardrobe_has_its_folder(folder, tmp_path):
    toy = replace(TINY, wardrobe="toy")
    with pytest.raises(ValueError, match=r"not empty and not these data \(recipe.json\)"):
        write(folder, toy)
    write(tmp_path / "toy", toy)
    assert json.loads((tmp_path / "toy" / RECIPE).read_text())["wardrobe"] == "toy"
    photos = [digest(path) for path in (folder, tmp_path / "toy")]
    assert photos[0].keys() == photos[1].keys()
    assert not set(photos[0].values()) & set(photos[1].values())
    with pytest.raises(ValueError, match="not these data"):
        write(tmp_path / "toy", TINY)


def test_a_folder_from_before_there_was_a_choice_is_toy(tmp_path):
    note = asdict(TINY)
    del note["wardrobe"]
    (tmp_path / RECIPE).write_text(json.dumps(note))
    write(tmp_path, replace(TINY, wardrobe="toy"))
    assert [path.name for path in tmp_path.iterdir()] == [RECIPE]  # taken as it is
    with pytest.raises(ValueError, match="not these data"):
        write(tmp_path, TINY)


def test_an_interrupted_drawing_is_noticed(folder, tmp_path):
    write(tmp_path / "data", TINY)
    (tmp_path / "data" / RECIPE).unlink()
    with pytest.raises(ValueError, match="not empty"):
        write(tmp_path / "data", TINY)
    assert json.loads((folder / RECIPE).read_text())["seed"] == 0


def test_few_photos_are_enough_for_a_search(tmp_path):
    write(tmp_path / "few", replace(TINY, photos=3))
    check_has_answers(read_dataset(tmp_path / "few"))


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"train_people": 6}, "train_people must be a multiple of 4, got 6"),
        ({"test_people": 0}, "test_people must be a multiple of 4, got 0"),
        ({"cameras": 1}, "cameras must be 2 to 9, got 1"),
        ({"wardrobe": "beach"}, "wardrobe must be one of street, toy, got 'beach'"),
        (
            {"cameras": 3, "photos": 3},
            "more than one for each of 3 cameras, .* some of them, got 3",
        ),
    ],
)
def test_refused(change, rule):
    with pytest.raises(ValueError, match=rule):
        Recipe(**{**{"cameras": 2, "photos": 4}, **change})


def test_the_sheet_has_a_row_for_each_person(folder):
    sheet = draw_sheet(folder)
    assert sheet.size == (4 * 68 - 4, 8 * 132 - 4)
    photos = sorted((folder / "bounding_box_train").glob("0003_*"), key=lambda p: p.name[9:])
    with Image.open(photos[1]) as photo:
        assert sheet.crop((68, 264, 132, 392)).tobytes() == photo.tobytes()
