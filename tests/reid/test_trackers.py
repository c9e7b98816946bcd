"""What a tracker gets: means over an epoch, and maps of different people."""

import pytest
import tiny_reid
from findings import maps
from training import run as training


class Logged(training.Run):
    """A run that keeps what it would log."""

    def log(self, numbers, epoch):
        self.logged = numbers


@pytest.fixture
def run(data, tmp_path):
    return Logged(tiny_reid.config(), data, tmp_path, quiet=True)


class Bar:
    def update(self):
        pass


def test_losses_are_means_over_the_epoch(run, monkeypatch):
    values = iter([1.0, 2.0, 6.0, 7.0])
    monkeypatch.setattr(
        run, "step", lambda *_: {"loss": (value := next(values)), "triplet": -value}
    )
    assert len(run.batches) == 4
    run.one_epoch(0, Bar())
    assert (run.logged["loss"], run.logged["triplet"]) == (4, -4)


def test_maps_are_of_different_people(run, data, monkeypatch):
    drawn = []
    monkeypatch.setattr(maps, "draw_maps", lambda network, photos, size: drawn.extend(photos))
    run.log_maps(1)
    assert len({photo.person for photo in drawn}) == len(drawn) == 4
    assert {photo.person for photo in drawn} <= {photo.person for photo in data.query}
