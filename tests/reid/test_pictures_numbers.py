"""Histograms of distances and learning curves show the numbers they are made of."""

import json

import numpy as np
import pytest
import torch
from findings.learning import LOGS, draw_curves, read_curves
from findings.separation import DRAWN, FINE, count_pairs, draw_separation
from matplotlib import pyplot as plt
from search import distances
from search.labels import Labels
from torch.utils.tensorboard import SummaryWriter


@pytest.fixture
def pairs():
    """Features, labels and, by hand, the distances of the same person and of different people."""
    torch.manual_seed(0)
    query, gallery = torch.randn(7, 5), torch.randn(40, 5)
    labels = Labels(*(torch.randint(0, 3, (n,)) for n in (7, 40, 7, 40)))
    same, different = [], []
    for i, j in np.ndindex(7, 40):
        far = 1 - torch.cosine_similarity(query[i].double(), gallery[j].double(), dim=0).item()
        if labels.query_people[i] != labels.gallery_people[j]:
            different.append(far)
        elif labels.query_cameras[i] != labels.gallery_cameras[j]:
            same.append(far)
    return query, gallery, labels, np.array(same), np.array(different)


@pytest.mark.parametrize("chunk", [1, distances.CHUNK_BYTES])
def test_pairs_are_counted_by_their_distance(pairs, chunk, monkeypatch):
    query, gallery, labels, same, different = pairs
    monkeypatch.setattr(distances.distance_chunks, "__defaults__", ("cosine", chunk))
    counted = count_pairs(query, gallery, labels)
    for counts, known in ((counted.same, same), (counted.different, different)):
        expected, _ = np.histogram(known, bins=DRAWN, range=(0, 2))
        assert np.array_equal(counts.reshape(DRAWN, -1).sum(1), expected)
    assert counted.median == pytest.approx(np.sort(same)[(len(same) - 1) // 2], abs=2 * 2 / FINE)
    nearer = (different < counted.median).mean()
    assert counted.nearer == pytest.approx(nearer, abs=1e-6)
    assert 0.1 < nearer < 0.9


def test_histogram_is_in_percent_of_each_kind(pairs):
    query, gallery, labels, same, different = pairs
    counted = count_pairs(query, gallery, labels)
    (axis,) = draw_separation(counted).axes
    for line, known in zip(axis.patches[::2], (same, different), strict=True):
        values, edges, _ = line.get_data()
        expected, _ = np.histogram(known, bins=DRAWN, range=(0, 2))
        np.testing.assert_allclose(values, 100 * expected / len(known), rtol=1e-5)
        assert (edges[0], edges[-1]) == (0, 2)
    assert axis.lines[0].get_xdata()[0] == counted.median
    texts = [text.get_text() for text in axis.get_legend().get_texts()]
    assert f"{len(same)} pairs" in texts[0]
    assert f"{100 * counted.nearer:.2g} %" in texts[2]
    plt.close("all")


def test_curves_are_what_the_training_logged(logged):
    curves = read_curves(logged)
    assert {"loss", "identity", "triplet", "rate", "mAP", "rank-1"} <= set(curves)
    assert list(curves["loss"]) == [1, 2, 3]
    for epoch, loss in curves["loss"].items():
        parts = curves["identity"][epoch] + curves["triplet"][epoch]
        assert loss == pytest.approx(parts, rel=1e-5)
    assert list(curves["mAP"]) == [2, 3]
    scores = json.loads((logged / "scores.json").read_text())
    assert curves["mAP"][3] == pytest.approx(scores["mAP"], rel=1e-5)
    assert curves["rank-1"][3] == pytest.approx(scores["rank-1"], rel=1e-5)


def test_an_epoch_that_was_repeated_counts_as_it_was_then(tmp_path):
    for suffix, values in ((".1", {1: 9.0, 2: 8.0, 3: 7.0}), (".2", {3: 1.0, 4: 0.5})):
        with SummaryWriter(tmp_path / LOGS, filename_suffix=suffix) as writer:
            for epoch, value in values.items():
                writer.add_scalar("loss", value, epoch)
    names = sorted(path.name for path in (tmp_path / LOGS).iterdir())
    assert len(names) == 2
    curves = read_curves(tmp_path)
    assert curves["loss"] == {1: 9.0, 2: 8.0, 3: 1.0, 4: 0.5}


def test_no_logs_no_curves(trained):
    assert read_curves(trained) == {}


def test_curves_are_drawn_in_their_panels():
    curves = {
        "loss": {1: 3.0, 2: 2.0},
        "triplet": {1: 1.0, 2: 0.5},
        "mAP": {2: 0.25},
        "rank-1": {2: 0.5},
        "rate": {1: 0.1, 2: 0.2},
        "waiting": {1: 0.3, 2: 0.3},
    }
    losses, scores, rate = draw_curves(curves).axes
    assert [line.get_label() for line in losses.lines] == ["sum", "triplet"]
    assert [list(line.get_ydata()) for line in losses.lines] == [[3, 2], [1, 0.5]]
    assert {line.get_label(): list(line.get_xydata()[0]) for line in scores.lines} == {
        "mAP": [2, 25],
        "rank-1": [2, 50],
    }
    assert [list(line.get_ydata()) for line in rate.lines] == [[0.1, 0.2]]
    assert len({line.get_linestyle() for line in losses.lines}) == 2
    assert losses.get_xlim() == scores.get_xlim() == rate.get_xlim()
    assert (scores.get_ylim()[0], rate.get_ylim()[0]) == (0, 0)
    assert scores.get_ylim()[1] > 52  # a score that was measured once is on the panel
    plt.close("all")


def test_curves_without_scores():
    losses, scores, _ = draw_curves({"loss": {1: 3.0, 2: 2.0}}).axes
    assert len(losses.lines) == 1
    assert not scores.lines
    plt.close("all")
