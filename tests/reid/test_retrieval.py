"""Scores of a retrieval against published ones, loops and cases by hand."""

import doctest
from pathlib import Path

import numpy as np
import pytest
import torch
from retrieval_cases import (
    METRICS,
    assert_same_scores,
    features_with_duplicates,
    oracle,
    random_case,
    random_labels,
)
from search import retrieval
from search.distances import BYTES_PER_PAIR, slices
from search.labels import Labels
from search.retrieval import nearest, score_distances, score_features

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("reid_eval_*.npz"))


# Against others


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden(path):
    stored = {name: torch.from_numpy(array) for name, array in np.load(path).items()}
    labels = Labels(*(stored[name] for name in ("q_pids", "g_pids", "q_camids", "g_camids")))
    scores = score_distances(stored["distmat"], labels, max_rank=len(stored["cmc"]))
    torch.testing.assert_close(scores.cmc, stored["cmc"].double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(scores.average_precision, stored["AP"], rtol=0, atol=1e-6)
    torch.testing.assert_close(scores.inverse_negative_penalty, stored["INP"], rtol=0, atol=1e-6)
    assert scores.is_valid.sum() == stored["num_valid"]
    assert scores.mean_average_precision == pytest.approx(stored["mAP"].item(), abs=1e-6)
    assert scores.mean_inverse_negative_penalty == pytest.approx(stored["mINP"].item(), abs=1e-6)


def test_golden_cases_are_there():
    assert len(GOLDEN) == 4


def test_docstrings():
    assert doctest.testmod(retrieval) == (0, 3)


@pytest.mark.parametrize("max_rank", [1, 4, 50])
def test_random_cases(max_rank):
    scored = dropped = 0
    for seed in range(150):
        distances, labels = random_case(seed)
        cmc, precision, penalty, is_valid, _ = oracle(distances, *labels, max_rank)
        if not precision:
            with pytest.raises(ValueError, match="another camera's photo"):
                score_distances(distances, labels, max_rank=max_rank)
            continue
        scores = score_distances(distances, labels, max_rank=max_rank)
        assert scores.cmc.tolist() == pytest.approx(cmc, abs=1e-12)
        assert scores.average_precision.tolist() == pytest.approx(precision, abs=1e-12)
        assert scores.inverse_negative_penalty.tolist() == pytest.approx(penalty, abs=1e-12)
        assert scores.is_valid.tolist() == is_valid
        scored, dropped = scored + 1, dropped + is_valid.count(False)
    assert scored > 75
    assert dropped > 75


def all_distances(query, gallery, metric):
    """In float64, from differences instead of products; rounded, so that equal features tie."""
    query, gallery = query.double()[:, None], gallery.double()
    if metric == "cosine":
        return (1 - torch.cosine_similarity(query, gallery, dim=-1)).round(decimals=9)
    return (query - gallery).norm(dim=-1).round(decimals=9)


@pytest.mark.parametrize("metric", METRICS)
def test_features_rank_by_their_distances(metric):
    query, gallery, labels = features_with_duplicates(0)
    scores = score_features(query, gallery, labels, metric=metric, max_rank=7)
    distances = all_distances(query, gallery, metric)
    cmc, precision, penalty, is_valid, _ = oracle(distances, *labels, 7)
    assert scores.cmc.tolist() == pytest.approx(cmc)
    assert scores.average_precision.tolist() == pytest.approx(precision)
    assert scores.inverse_negative_penalty.tolist() == pytest.approx(penalty)
    assert scores.is_valid.tolist() == is_valid


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("count", [1, 10, 60])
def test_nearest_is_the_ranking(metric, count):
    query, gallery, labels = features_with_duplicates(1)
    indices, distances = nearest(query, gallery, labels, count=count, metric=metric)
    assert indices.shape == distances.shape == (23, count)
    expected = all_distances(query, gallery, metric)
    *_, rankings = oracle(expected, *labels, 1)
    assert any(len(ranking) < len(gallery) for ranking in rankings)
    for row, ranking in enumerate(rankings):
        missing = max(0, count - len(ranking))
        assert indices[row].tolist() == ranking[:count] + [-1] * missing
        near = expected[row, ranking[:count]].tolist() + [torch.inf] * missing
        assert distances[row].tolist() == pytest.approx(near, abs=1e-6)


def test_nearest_keeps_no_ranking_alive():
    order = torch.arange(100).reshape(2, 50)
    ranking = retrieval._Ranking(order.float(), order, order > 0)
    for count in (3, 50, 60):
        for kept in retrieval._first(ranking, count):
            assert kept.untyped_storage().nbytes() == 2 * count * kept.element_size()
            assert kept.data_ptr() not in (order.data_ptr(), ranking.distances.data_ptr())


# Rules of the protocol, by hand


def test_same_person_and_camera_is_left_out():
    distances = torch.tensor([[0.0, 0.1, 0.2, 0.3]])
    scores = score_distances(distances, Labels([1], [1, 2, 1, 1], [0], [0, 0, 1, 2]))
    assert scores.average_precision.item() == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert scores.inverse_negative_penalty.item() == pytest.approx(2 / 3)
    assert scores.cmc.tolist() == [0, 1, 1, 1]  # of length 4, though three are left


def test_the_curve_ends_with_the_gallery_or_with_max_rank():
    distances = torch.rand(2, 9)
    labels = Labels([1, 2], [1, 2, 0, 0, 0, 0, 0, 0, 0], [0, 0], [1] * 9)
    assert len(score_distances(distances, labels).cmc) == 9
    assert len(score_distances(distances, labels, max_rank=3).cmc) == 3


def test_equal_distances_rank_in_the_order_of_the_gallery():
    people = torch.zeros(300, dtype=torch.long)
    people[[0, 299]] = torch.tensor([1, 2])
    scores = score_distances(torch.zeros(2, 300), Labels([1, 2], people, [0, 0], people + 1))
    assert scores.inverse_negative_penalty.tolist() == [1, 1 / 300]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("num_gallery", [3, 64, 301])
def test_equal_features_rank_in_the_order_of_the_gallery(metric, num_gallery):
    feature = torch.randn(1, 33, generator=torch.Generator().manual_seed(0)) * 7 + 1
    for query in (feature, feature + 0.5):
        gallery = feature.expand(num_gallery, -1)
        labels = Labels(torch.tensor([1]), torch.ones(num_gallery).int(), [0], [1] * num_gallery)
        indices, _ = nearest(query, gallery, labels, count=num_gallery, metric=metric)
        assert indices.tolist() == [list(range(num_gallery))]


@pytest.mark.parametrize("metric", METRICS)
def test_equal_features_have_distance_zero(metric):
    features = torch.randn(40, 200, generator=torch.Generator().manual_seed(0)) * 100
    people = torch.arange(40)
    zeros = torch.zeros(40).int()
    indices, distances = nearest(
        features, features, Labels(people, people, zeros, zeros + 1), 1, metric=metric
    )
    assert torch.equal(indices[:, 0], people)
    assert distances.eq(0).all()


def test_a_camera_that_the_gallery_lacks():
    scores = score_distances(torch.tensor([[0.2, 0.1]]), Labels([1], [1, 1], [77], [0, 1]))
    assert scores.mean_average_precision == 1


# Chunks


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("num_query", [1, 2, 23])
def test_chunks_change_nothing(metric, num_query):
    query, gallery, labels = features_with_duplicates(2)
    labels = labels.of_queries(slice(num_query))
    whole = score_features(query[:num_query], gallery, labels, metric=metric)
    ranking = nearest(query[:num_query], gallery, labels, metric=metric)
    for rows in (0, 1, 2, 7, 22):
        chunk_bytes = rows * len(gallery) * BYTES_PER_PAIR
        options = {"metric": metric, "chunk_bytes": chunk_bytes}
        assert_same_scores(score_features(query[:num_query], gallery, labels, **options), whole)
        for some, all_ in zip(
            nearest(query[:num_query], gallery, labels, **options), ranking, strict=True
        ):
            assert torch.equal(some, all_)


def test_distances_are_scored_in_chunks_too(monkeypatch):
    distances, labels = torch.rand(40, 30), random_labels(torch.Generator(), 40, 30, 5, 3)
    whole = score_distances(distances, labels)
    monkeypatch.setattr(retrieval, "CHUNK_BYTES", 7 * 30 * BYTES_PER_PAIR)
    assert_same_scores(score_distances(distances, labels), whole)


@pytest.mark.parametrize("called", [score_features, nearest])
def test_chunks_are_as_large_as_asked_for(monkeypatch, called):
    lengths, rank = [], retrieval._rank
    monkeypatch.setattr(
        retrieval, "_rank", lambda d, *rest: lengths.append(len(d)) or rank(d, *rest)
    )
    query, gallery, labels = features_with_duplicates(5)
    called(query, gallery, labels, chunk_bytes=9 * len(gallery) * BYTES_PER_PAIR)
    assert lengths == [9, 9, 5]


def test_a_chunk_has_no_more_queries_than_fit():
    lengths = [rows.stop - rows.start for rows in slices(10, 5, 4 * 5 * 48)]
    assert lengths == [4, 4, 2]
