"""Is the right person found first? CMC, mAP and mINP by the protocol of Market-1501."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from search.distances import CHUNK_BYTES, distance_chunks, slices
from search.labels import Labels


@dataclass(frozen=True, eq=False)
class Scores:
    """How well each query found its person.

    Attributes:
        cmc: `[min(max_rank, num_gallery)]`, the part of the valid queries with a match among the
            first 1, 2, ... kept items.
        average_precision: of each valid query, in the order of the queries.
        inverse_negative_penalty: likewise.
        first_match: likewise, the rank of the first match, counted from 1.
        is_valid: `[num_query]`, whether a match remained.
    """

    cmc: Tensor
    average_precision: Tensor
    inverse_negative_penalty: Tensor
    first_match: Tensor
    is_valid: Tensor

    @property
    def mean_average_precision(self) -> float:
        """MAP: the mean of `average_precision`."""
        return self.average_precision.mean().item()

    @property
    def mean_inverse_negative_penalty(self) -> float:
        """MINP: the mean of `inverse_negative_penalty`."""
        return self.inverse_negative_penalty.mean().item()

    def rank(self, n: int) -> float:
        """CMC at rank `n`, counted from 1; beyond the curve only where it has arrived at 1."""
        if n >= 1 and (n <= len(self.cmc) or self.cmc[-1] == 1):
            return self.cmc[min(n, len(self.cmc)) - 1].item()
        raise ValueError(
            f"the curve has ranks 1 to {len(self.cmc)}, got {n}; score with max_rank={max(n, 1)}"
        )


def score_distances(
    distances: Tensor,
    labels: Labels,
    max_rank: int = 50,
) -> Scores:
    """Score a ranking by distances.

    A query's ranking leaves out the gallery's photos of the same person by the same camera. With
    `M` matches left, at ranks `r_1 < ... < r_M` counted from 1 in what is left:

        AP = mean_m m / r_m      INP = M / r_M      CMC_r = mean over queries of [r_1 <= r]

    Queries with `M = 0` are left out of all means. Equal distances rank in the gallery's order.

    Args:
        distances: `[num_query, num_gallery]`, smaller is closer.
        labels: of the photos; `Labels.of` reads them off.
        max_rank: the length of the CMC curve, or the gallery's size if that is less.

    Raises:
        ValueError: shapes do not fit, the gallery is empty, a distance is not finite, or no query
            has a match.

    Example:
        >>> distances = torch.tensor([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]])
        >>> scores = score_distances(distances, Labels([1, 2], [1, 1, 2], [0, 0], [0, 1, 1]))
        >>> scores.mean_average_precision, scores.rank(1)  # the first item of query 0 is left out
        (1.0, 1.0)

    Reference: Zheng et al. 2015, Scalable person re-identification: a benchmark (the protocol);
        Ye et al. 2021, arXiv 2001.04193, section 4.1 (mINP).
    """
    if distances.ndim != 2 or not distances.is_floating_point():
        raise ValueError(
            f"distances must be floating point [num_query, num_gallery], got {distances.dtype} "
            f"{list(distances.shape)}"
        )
    labels = labels.checked(*distances.shape, distances.device)
    chunks = slices(*distances.shape, CHUNK_BYTES)
    rankings = (_rank(distances[rows], labels, rows) for rows in chunks)
    return _scores(rankings, labels, max_rank)


def score_features(
    query_features: Tensor,
    gallery_features: Tensor,
    labels: Labels,
    *,
    metric: str = "cosine",
    max_rank: int = 50,
    chunk_bytes: int = CHUNK_BYTES,
) -> Scores:
    """Score the ranking by distances of features, made for some queries at a time.

    `cosine` is `1 - q.g / (|q| |g|)`, `euclidean` is `|q - g|`. Both are computed in float64, on
    the features' device, and rounded to float32: neither the chunk nor TF32 changes a ranking.

    Args:
        query_features: `[num_query, dim]`.
        gallery_features: `[num_gallery, dim]`.
        labels: of the photos; `Labels.of` reads them off.
        metric: `cosine` or `euclidean`.
        max_rank: the length of the CMC curve, or the gallery's size if that is less.
        chunk_bytes: about how much memory to use besides the features; at least one query's.

    Raises:
        ValueError: as `score_distances`, or a feature is not finite, or `metric` is unknown.

    Reference: see `score_distances`.
    """
    rankings = _rankings(query_features, gallery_features, labels, metric, chunk_bytes)
    return _scores(rankings, labels, max_rank)


def nearest(
    query_features: Tensor,
    gallery_features: Tensor,
    labels: Labels,
    count: int = 10,
    *,
    metric: str = "cosine",
    chunk_bytes: int = CHUNK_BYTES,
) -> tuple[Tensor, Tensor]:
    """Each query's first items of the ranking that `score_features` scores.

    Args:
        query_features: `[num_query, dim]`.
        gallery_features: `[num_gallery, dim]`.
        labels: of the photos; `Labels.of` reads them off.
        count: how many items.
        metric: `cosine` or `euclidean`.
        chunk_bytes: see `score_features`.

    Returns:
        Indices into the gallery and distances, both `[num_query, count]`; where fewer items are
        left, the index is -1 and the distance infinite.

    Raises:
        ValueError: as `score_features`, or `count` is less than 1.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    rankings = _rankings(query_features, gallery_features, labels, metric, chunk_bytes)
    firsts = [_first(ranking, count) for ranking in rankings]
    return torch.cat([order for order, _ in firsts]), torch.cat([far for _, far in firsts])


@dataclass(frozen=True, eq=False)
class _Ranking:
    """Some queries' distances in order, the gallery's indices, and which are matches.

    What is left out comes last, with an infinite distance.
    """

    distances: Tensor
    order: Tensor
    is_match: Tensor


def _rankings(
    query: Tensor, gallery: Tensor, labels: Labels, metric: str, chunk_bytes: int
) -> Iterator[_Ranking]:
    """Those of some queries at a time."""
    chunks = distance_chunks(query, gallery, metric, chunk_bytes)
    labels = labels.checked(len(query), len(gallery), query.device)
    return (_rank(chunk, labels, rows) for rows, chunk in chunks)


def _rank(distances: Tensor, labels: Labels, rows: slice) -> _Ranking:
    if not distances.isfinite().all():
        row, column = (~distances.isfinite()).nonzero()[0].tolist()
        raise ValueError(
            f"distances must be finite, got {distances[row, column]} for query {rows.start + row} "
            f"and gallery item {column}; look for the photo or layer that makes it"
        )
    left_out = labels.left_out(rows)
    ordered, order = distances.masked_fill(left_out, torch.inf).sort(dim=1, stable=True)
    is_match = (labels.same_person(rows) & ~left_out).gather(1, order)
    return _Ranking(ordered, order, is_match)


def _scores(rankings: Iterator[_Ranking], labels: Labels, max_rank: int) -> Scores:
    if max_rank < 1:
        raise ValueError(f"max_rank must be at least 1, got {max_rank}")
    parts = [_score_queries(ranking.is_match) for ranking in rankings]
    precision, penalty, first, count = map(torch.cat, zip(*parts, strict=True))
    is_valid, num_gallery = count > 0, len(labels.gallery_people)
    if not is_valid.any():
        raise ValueError(
            f"a query needs another camera's photo of its person: none of {len(count)} "
            f"queries has one among {num_gallery} gallery items; do the people and cameras "
            "belong to these photos?"
        )
    first = first[is_valid]
    ranks = torch.arange(1, min(max_rank, num_gallery) + 1, device=first.device)
    found = torch.searchsorted(first.sort().values, ranks, right=True)
    cmc = found.double() / len(first)
    return Scores(cmc, precision[is_valid], penalty[is_valid], first, is_valid)


def _score_queries(is_match: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """AP, INP, rank of the first match and number of matches; meaningless for no match."""
    query, place = is_match.nonzero(as_tuple=True)  # in the order of queries, then of ranks
    rank = place + 1
    count = is_match.sum(dim=1)
    last = count.cumsum(0)  # where the matches of the next query start
    match = torch.arange(len(query), device=rank.device) - (last - count)[query] + 1
    zeros = torch.zeros(len(count), dtype=torch.float64, device=rank.device)
    precision = zeros.index_add(0, query, match.double() / rank) / count
    padded = torch.cat([rank, rank.new_ones(1)])  # so that queries without a match have a place
    penalty = count / padded[last - 1].double()
    return precision, penalty, padded[last - count], count


def _first(ranking: _Ranking, count: int) -> tuple[Tensor, Tensor]:
    distances = ranking.distances[:, :count]  # a view: padding copies, and lets go of the rest
    order = ranking.order[:, :count].masked_fill(distances.isinf(), -1)
    missing = (0, count - order.shape[1])
    return F.pad(order, missing, value=-1), F.pad(distances, missing, value=torch.inf)
