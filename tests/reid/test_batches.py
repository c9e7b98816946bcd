"""Batches are the same for the same seed and epoch, whatever happens around them."""

import collections

import numpy as np
import pytest
import torch
from data.batches import PeopleSampler, Photos, UnreadableImageError, read_image, training_labels
from data.market import Photo

SIZE = 32, 16


def sampler(counts, people=3, photos=2, seed=0):
    return PeopleSampler([p for p, n in counts.items() for _ in range(n)], people, photos, seed)


def test_a_batch_has_people_with_photos():
    labels = [3] * 4 + [0] * 2 + [7] * 5 + [1] * 3 + [9] * 2
    batches = PeopleSampler(labels, 3, 2, 0)
    listed = list(batches)
    assert len(listed) == len(batches) == 2  # 16 photos are 1.6 rounds of 5 people with 2 photos
    for batch in listed:
        assert len(batch) == len(set(batch)) == 6
        assert sorted(collections.Counter(labels[i] for i in batch).values()) == [2, 2, 2]


def test_an_epoch_has_about_all_photos():
    batches = sampler(dict.fromkeys(range(12), 8), people=4, photos=2)
    assert len(batches) * 8 == 96
    seen = collections.Counter(i for batch in batches for i in batch)
    assert len(seen) > 60  # by chance, not one photo of a person for ever
    people = collections.Counter(i // 8 for batch in batches for i in batch)
    assert set(people.values()) == {8}


def test_some_photos_come_twice_where_there_are_too_few():
    (batch, *_) = sampler({0: 2, 1: 9, 2: 9}, photos=4)
    assert collections.Counter(i for i in batch if i < 2).total() == 4


def test_order_depends_on_seed_and_epoch_only():
    first, second = sampler(dict.fromkeys(range(9), 4)), sampler(dict.fromkeys(range(9), 4))
    other = sampler(dict.fromkeys(range(9), 4), seed=1)
    torch.manual_seed(5)
    np.random.seed(5)
    assert list(first) == list(first) == list(second) != list(other)
    second.epoch = 1
    assert list(first) != list(second)


@pytest.mark.parametrize(
    ("counts", "people", "rule"),
    [
        ({0: 2, 1: 2}, 3, "a batch has 3 people x 2 photos, but the training set only 2 people"),
        ({0: 2, 1: 1, 2: 1, 3: 3}, 3, "2 people have one photo only, such as person 1"),
        ({0: 2, 1: 2}, 1, "at least 2 people with 2 photos in a batch, got 1 x 2"),
    ],
)
def test_refused(counts, people, rule):
    with pytest.raises(ValueError, match=rule):
        sampler(counts, people=people)


def test_labels_are_numbered_by_name():
    photos = [Photo(None, person, 1) for person in (7, 2, 7, 40)]
    assert training_labels(photos) == [1, 0, 1, 2]


def test_augmentation_depends_on_seed_epoch_and_photo_only(data):
    photos = Photos(data.train, SIZE, seed=0)
    first = [photos[i][0] for i in range(6)]
    state = torch.random.get_rng_state()
    torch.manual_seed(9)
    again = [Photos(data.train, SIZE, seed=0)[i][0] for i in reversed(range(6))][::-1]
    assert all(map(torch.equal, first, again))
    assert not torch.equal(state, torch.random.get_rng_state())
    before = torch.random.get_rng_state()
    photos[0]
    assert torch.equal(before, torch.random.get_rng_state())  # nobody else notices
    photos.epoch = 1
    assert not all(torch.equal(a, photos[i][0]) for i, a in enumerate(first))


def test_photos_of_a_test_are_as_they_are(data):
    image, index = Photos(data.query, SIZE)[3]
    assert index == 3
    assert image.shape == (3, *SIZE)
    assert image.dtype == torch.uint8
    assert torch.equal(image, read_image(data.query[3].path, SIZE))


@pytest.mark.parametrize("content", [b"", b"no picture", None])
def test_a_corrupt_image_is_named(data, tmp_path, content):
    whole = data.query[0].path.read_bytes()
    path = tmp_path / "0001_c1s1_000000_00.jpg"
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(UnreadableImageError, match=r"0001_c1s1_000000_00\.jpg cannot be read"):
        Photos([Photo(path, 1, 1)], SIZE)[0]


def test_gray_photos_have_three_channels(data, tmp_path):
    from PIL import Image

    path = tmp_path / "gray.png"
    Image.new("L", (20, 50), 77).save(path)
    assert read_image(path, SIZE).unique().tolist() == [77]
