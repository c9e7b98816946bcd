"""What may be passed to be scored, and what may not."""

import re

import numpy as np
import pytest
import torch
from retrieval_cases import assert_same_scores, features_with_duplicates
from search import retrieval
from search.labels import Labels
from search.retrieval import nearest, score_distances, score_features

# What may be passed


@pytest.mark.parametrize("convert", [np.asarray, torch.Tensor.tolist, lambda t: t.to(torch.int16)])
def test_labels_of_other_types(convert):
    query, gallery, labels = features_with_duplicates(3)
    converted = [convert(label) for label in labels]
    expected = score_features(query, gallery, labels)
    assert_same_scores(score_features(query, gallery, Labels(*converted)), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_features_of_other_types(dtype):
    query, gallery, labels = features_with_duplicates(4)
    query, gallery = query.to(dtype).requires_grad_(), gallery.to(dtype)
    scores = score_features(query, gallery, labels, metric="euclidean")
    expected = score_features(query.float(), gallery.float(), labels, metric="euclidean")
    assert not scores.cmc.requires_grad
    if dtype != torch.float64:
        assert_same_scores(scores, expected)


def test_curve_beyond_its_end():
    distances = torch.tensor([[0.1, 0.2, 0.3]])
    scores = score_distances(distances, Labels([1], [2, 1, 2], [0], [1, 1, 1]))
    assert [scores.rank(n) for n in (1, 2, 3, 10)] == [0, 1, 1, 1]
    short = score_distances(distances, Labels([1], [2, 1, 2], [0], [1, 1, 1]), max_rank=1)
    assert short.rank(1) == 0
    for n in (0, 2):
        with pytest.raises(ValueError, match=rf"ranks 1 to 1, got {n}; score with max_rank="):
            short.rank(n)


# Errors


def test_no_query_has_a_match():
    labels = Labels([1, 2], [1, 3, 2], [0, 0], [0, 1, 0])
    with pytest.raises(ValueError, match="none of 2 queries has one among 3 gallery items"):
        score_distances(torch.rand(2, 3), labels)
    with pytest.raises(ValueError, match="none of 2 queries has one among 3 gallery items"):
        score_features(torch.rand(2, 4), torch.rand(3, 4), labels)


@pytest.mark.parametrize("shape", [(2, 0), (0, 3)])
def test_nothing_to_rank(shape):
    labels = Labels([1] * shape[0], [1] * shape[1], [0] * shape[0], [1] * shape[1])
    message = f"got {shape[0]} queries and {shape[1]} gallery items"
    with pytest.raises(ValueError, match=message):
        score_distances(torch.rand(shape), labels)
    for scored in (score_features, nearest):
        with pytest.raises(ValueError, match=message):
            scored(torch.rand(shape[0], 4), torch.rand(shape[1], 4), labels)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("chunk_bytes", [1, 2**26])
def test_distances_that_are_not_finite(monkeypatch, chunk_bytes, value):
    monkeypatch.setattr(retrieval, "CHUNK_BYTES", chunk_bytes)
    distances = torch.zeros(3, 4)
    distances[2, 1] = value
    message = rf"must be finite, got {value} for query 2 and gallery item 1"
    with pytest.raises(ValueError, match=message):
        score_distances(distances, Labels([1] * 3, [1] * 4, [0] * 3, [1] * 4))


@pytest.mark.parametrize("scored", [score_features, nearest])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_features_that_are_not_finite(scored, value):
    labels = Labels([1] * 3, [1] * 4, [0] * 3, [1] * 4)
    for name, place in (("query", 0), ("gallery", 1)):
        features = [torch.ones(3, 5), torch.ones(4, 5)]
        features[place][[1, 2], 3] = value
        count = len(features[place])
        with pytest.raises(ValueError, match=f"2 of {count} of the {name} are not, first number 1"):
            scored(*features, labels)


def test_distances_that_overflow():
    features = torch.full((1, 2), 1e200, dtype=torch.float64)
    with pytest.raises(ValueError, match="distances must be finite, got inf"):
        score_features(features, -features, Labels([1], [1], [0], [1]), metric="euclidean")


@pytest.mark.parametrize("name", ["query_people", "gallery_people", "query_cameras"])
@pytest.mark.parametrize("bad", [torch.ones(5).int(), torch.ones(2, 1).int(), torch.ones(())])
def test_labels_that_do_not_fit(name, bad):
    labels = {
        "query_people": [1, 1],
        "gallery_people": [1, 1, 1],
        "query_cameras": [0, 0],
        "gallery_cameras": [1, 1, 1],
    } | {name: bad}
    length = 3 if name.startswith("gallery") else 2
    message = re.escape(f"{name} must be integers [{length}], for 2 queries and 3 gallery items")
    with pytest.raises(ValueError, match=message):
        score_distances(torch.rand(2, 3), Labels(**labels))


def test_labels_that_are_no_integers():
    with pytest.raises(ValueError, match=r"gallery_cameras must be integers \[1\].*float32 \[1\]"):
        score_distances(torch.rand(1, 1), Labels([1], [1], [0], [0.5]))


@pytest.mark.parametrize("bad", [torch.rand(3), torch.ones(1, 1).int()])
def test_distances_that_do_not_fit(bad):
    with pytest.raises(ValueError, match=r"floating point \[num_query, num_gallery\], got torch"):
        score_distances(bad, Labels([1], [1], [0], [1]))


@pytest.mark.parametrize("shapes", [((2, 3), (2, 4)), ((2,), (2, 4)), ((2, 3, 1), (2, 3))])
def test_features_that_do_not_fit(shapes):
    message = re.escape(f"got {list(shapes[0])} and {list(shapes[1])}")
    with pytest.raises(ValueError, match=message):
        score_features(*map(torch.rand, shapes), Labels([1, 1], [1, 1], [0, 0], [1, 1]))


def test_options_that_do_not_exist():
    features, labels = torch.rand(2, 3), Labels([1, 1], [1, 1], [0, 0], [1, 1])
    with pytest.raises(ValueError, match="one of cosine, euclidean, got 'dot'"):
        score_features(features, features, labels, metric="dot")
    with pytest.raises(ValueError, match="max_rank must be at least 1, got 0"):
        score_features(features, features, labels, max_rank=0)
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        nearest(features, features, labels, count=0)
