import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from search import reranking
from search.labels import Labels
from search.reranking import rerank
from search.retrieval import score_distances, score_features

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = {
    "reid_rerank_0_k6_3": {"k1": 6, "k2": 3, "weight": 0.3},
    "reid_rerank_1_k4_1": {"k1": 4, "k2": 1, "weight": 0.5},
}


def oracle(query, gallery, k1, k2, weight, metric):
    """The formula with sets and dictionaries, one photo at a time."""
    photos = torch.cat([query, gallery]).double()
    if metric == "cosine":
        photos = photos / photos.norm(dim=1, keepdim=True)
    squares = (photos[:, None] - photos).square().sum(-1)
    scaled = (squares / squares.max(dim=1, keepdim=True).values).tolist()
    number = range(len(photos))
    ranking = [sorted(number, key=lambda j, i=i: (j != i, scaled[i][j])) for i in number]

    def reciprocal(i, k):
        return {j for j in ranking[i][: k + 1] if i in ranking[j][: k + 1]}

    half = {0.5: 0, 1.5: 2, 2.5: 2, 3.5: 4}.get(k1 / 2, k1 // 2)
    encoded = []
    for i in number:
        members = set(reciprocal(i, k1))
        for candidate in reciprocal(i, k1):
            others = reciprocal(candidate, half)
            if len(others & reciprocal(i, k1)) > 2 / 3 * len(others):
                members |= others
        weights = {j: math.exp(-scaled[i][j]) for j in members}
        encoded.append({j: w / sum(weights.values()) for j, w in weights.items()})
    averaged = [
        {j: sum(encoded[c].get(j, 0) for c in ranking[i][:k2]) / k2 for j in number} for i in number
    ]
    result = torch.empty(len(query), len(gallery), dtype=torch.float64)
    for i in range(len(query)):
        for place in range(len(gallery)):
            g = len(query) + place
            shared = sum(min(averaged[i][j], averaged[g][j]) for j in number)
            jaccard = 1 - shared / (2 - shared)
            result[i, place] = (1 - weight) * jaccard + weight * scaled[i][g]
    return result


def random_features(seed, num_query=7, num_gallery=24, dim=4):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_query, dim, generator=generator), torch.randn(
        num_gallery, dim, generator=generator
    )


@pytest.mark.parametrize("name", CASES)
def test_golden(name):
    stored = {
        key: torch.from_numpy(array) for key, array in np.load(GOLDEN / f"{name}.npz").items()
    }
    found = rerank(stored["q_feat"], stored["g_feat"], metric="euclidean", **CASES[name])
    torch.testing.assert_close(found, stored["final_dist"], rtol=0, atol=1e-5)
    half = stored["final_dist_transreid_fp16"]
    torch.testing.assert_close(found, half, rtol=0, atol=3e-3)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("k2", [1, 2, 6])
@pytest.mark.parametrize("k1", [1, 3, 5, 6, 7, 12])
def test_formula(metric, k1, k2):
    features = random_features(10 * k1 + k2)
    options = {"k1": k1, "k2": k2, "weight": 0.2, "metric": metric}
    expected = oracle(*features, **options).float()
    torch.testing.assert_close(rerank(*features, **options), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("chunk_bytes", [0, 5000])
def test_chunks_change_nothing(chunk_bytes):
    features = random_features(0)
    assert torch.equal(rerank(*features, k1=6, chunk_bytes=chunk_bytes), rerank(*features, k1=6))


def test_weight_1_is_the_ranking_without():
    features = random_features(1)
    labels = Labels(
        torch.arange(7) % 3, torch.arange(24) % 4, torch.zeros(7).int(), torch.arange(24) % 2
    )
    plain = score_features(*features, labels)
    assert torch.equal(score_distances(rerank(*features, weight=1), labels).cmc, plain.cmc)


def test_neighbors_help():
    """Nine photos each of 40 people: what is near to a person's photos is likely another."""
    generator = torch.Generator().manual_seed(0)
    people = torch.arange(40).repeat(9)
    features = torch.randn(40, 16, generator=generator)[people]
    features += torch.randn(360, 16, generator=generator)
    query, gallery = features[:40], features[40:]
    labels = Labels(people[:40], people[40:], torch.zeros(40).int(), torch.ones(320).int())
    plain = score_features(query, gallery, labels).mean_average_precision
    reranked = score_distances(rerank(query, gallery, k1=8, k2=4), labels)
    assert reranked.mean_average_precision > plain + 0.03


def test_equal_photos():
    """More equal photos than k1: each is its own neighbor, and nothing divides by zero."""
    same = torch.ones(12, 3)
    nearest = reranking._nearest(same, 3, metric="cosine", chunk_bytes=5 * 12 * 48)
    assert nearest[:, 0].tolist() == list(range(12))
    assert rerank(same[:2], same, k1=3, k2=1).isfinite().all()
    apart = torch.cat([same, -same])
    distances = rerank(same[:1], apart, k1=3, k2=2)
    assert distances[0, :12].max() < distances[0, 12:].min()


def test_what_is_passed_stays_as_it_is():
    features = random_features(2)
    copies = [f.clone() for f in features]
    result = rerank(*(f.requires_grad_() for f in features), k1=5)
    assert not result.requires_grad
    assert all(map(torch.equal, features, copies))


@pytest.mark.parametrize("options", [{"k1": 0}, {"k2": 0}, {"k1": 31}, {"k1": 5, "k2": 32}])
def test_neighbors_out_of_range(options):
    used = {"k1": 20, "k2": 6} | options
    message = f"less than the 31 photos.*got k1={used['k1']} and k2={used['k2']}"
    with pytest.raises(ValueError, match=message):
        rerank(*random_features(0), **options)


@pytest.mark.parametrize("weight", [-0.1, 1.1])
def test_weight_out_of_range(weight):
    with pytest.raises(ValueError, match=f"weight must be from 0 to 1, got {weight}"):
        rerank(*random_features(0), weight=weight)


def test_features_that_do_not_fit():
    with pytest.raises(ValueError, match=re.escape("got [3, 4] and [30, 5]")):
        rerank(torch.rand(3, 4), torch.rand(30, 5))
    bad = torch.rand(30, 4)
    bad[4] = torch.nan
    with pytest.raises(ValueError, match="1 of 30 of the gallery are not, first number 4"):
        rerank(torch.rand(3, 4), bad)
