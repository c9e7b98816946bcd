"""What is changed of a photo: each option alone, and the same for the same seed."""

import pytest
import tiny_reid
import torch
from data.augment import GRAY, Augmentation
from data.batches import Photos
from torchvision.transforms import v2

SIZE = 32, 16
NOTHING = {"flip": 0.0, "crop": 0.0, "erasing": 0.0, "jitter": 0.0}


def image(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8, generator=generator)


def changed(seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Augmentation(**{**NOTHING, **options}).transform(SIZE)(image())


def test_what_is_done_if_nothing_is_said():
    steps = [
        v2.RandomHorizontalFlip(0.5),
        v2.RandomCrop((64, 32), padding=2, fill=GRAY),
        v2.RandomErasing(0.5, (0.02, 0.3), value=list(GRAY)),
    ]
    photo = torch.randint(0, 256, (3, 64, 32), dtype=torch.uint8)
    for seed in range(8):
        torch.manual_seed(seed)
        expected = v2.Compose(steps)(photo)
        torch.manual_seed(seed)
        assert torch.equal(Augmentation().transform((64, 32))(photo), expected)


def test_nothing():
    assert torch.equal(changed(), image())


def test_flip():
    assert torch.equal(changed(flip=1.0), image().flip(-1))


@pytest.mark.parametrize(("share", "rows"), [(0.01, 1), (0.25, 8)])
def test_crop(share, rows):
    """What remains of the photo is moved by some pixels, and gray around it."""
    gray = torch.tensor(GRAY, dtype=torch.uint8)[:, None, None]
    padded = v2.functional.pad(image(), [rows] * 4, fill=list(GRAY))
    windows = {
        (top, left): padded[:, top : top + SIZE[0], left : left + SIZE[1]]
        for top in range(2 * rows + 1)
        for left in range(2 * rows + 1)
    }
    found = set()
    for seed in range(20):
        moved = changed(seed, crop=share)
        found |= {place for place, window in windows.items() if torch.equal(window, moved)}
    assert len(found) > 5
    assert (padded[:, :rows] == gray).all()


@pytest.mark.parametrize("area", [0.01, 0.3])
def test_erasing(area):
    for seed in range(10):
        hole = (changed(seed, erasing=1.0, erasing_area=area) != image()).any(0)
        assert 0 < hole.float().mean() < 1.3 * area + 0.01


def test_colors():
    photo = changed(3, jitter=1.0, jitter_strength=0.4)
    assert (photo != image()).float().mean() > 0.5
    weak = changed(3, jitter=1.0, jitter_strength=0.05)
    gaps = [(one.int() - image().int()).abs().float().mean() for one in (photo, weak)]
    assert gaps[0] > 3 * gaps[1] > 0
    assert any(torch.equal(changed(seed, jitter=0.5), image()) for seed in range(9))


def test_the_same_for_the_same_seed_epoch_and_photo(data):
    options = tiny_reid.config(jitter=1.0, erasing=1.0, crop=0.2).augmentation
    one, two = (Photos(data.train, SIZE, seed=3, augmentation=options) for _ in range(2))
    plain = Photos(data.train, SIZE, seed=3)
    torch.manual_seed(5)
    assert torch.equal(one[2][0], two[2][0])
    assert not torch.equal(one[2][0], plain[2][0])
    two.epoch = 1
    assert not torch.equal(one[2][0], two[2][0])


@pytest.mark.parametrize(
    ("option", "rule"),
    [
        ({"flip": 1.5}, r"flip must be at most 1, got 1\.5"),
        ({"erasing_area": 0.0}, r"erasing_area must be greater than 0, got 0\.0"),
        ({"jitter_strength": -0.1}, r"jitter_strength must be at least 0, got -0\.1"),
    ],
)
def test_refused(option, rule):
    with pytest.raises(ValueError, match=rule):
        tiny_reid.config(**option)
