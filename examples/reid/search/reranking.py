"""Distances that take the neighbors of both photos into account: k-reciprocal re-ranking."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from search.distances import CHUNK_BYTES, check_features, distance_chunks


def rerank(
    query_features: Tensor,
    gallery_features: Tensor,
    *,
    k1: int = 20,
    k2: int = 6,
    weight: float = 0.3,
    metric: str = "cosine",
    chunk_bytes: int = CHUNK_BYTES,
) -> Tensor:
    """Re-rank by the k-reciprocal neighbors that a query and a gallery item share.

    Queries and gallery are one set of `N` photos. With their squared distances `D`, each row over
    its maximum, and `N(i, k)` the `k + 1` nearest of `i`, itself included:

        R(i, k) = {j in N(i, k): i in N(j, k)}
        R*(i)   = R(i, k1) with each R(c, k1 / 2) where c in R(i, k1) and
                  |R(c, k1 / 2) & R(i, k1)| > 2/3 |R(c, k1 / 2)|
        V_ij    = exp(-D_ij) for j in R*(i), else 0; each row over its sum
        V_i     = mean of V_j over j in N(i, k2 - 1)
        J_ig    = 1 - S / (2 - S) with S = sum_j min(V_ij, V_gj)
        result  = (1 - weight) J + weight D

    `k1 / 2` is rounded, halves to the even number. `cosine` normalizes the features first. No
    label is used. Everything but the result is sparse or made for some photos at a time.

    Args:
        query_features: `[num_query, dim]`.
        gallery_features: `[num_gallery, dim]`.
        k1: how many neighbors are asked whether they are reciprocal.
        k2: over how many photos, the photo itself included, its neighbors are averaged.
        weight: of `D`, from 0 to 1; the paper's lambda.
        metric: `cosine` or `euclidean`.
        chunk_bytes: see `score_features`.

    Returns:
        Distances `[num_query, num_gallery]` for `score_distances`, on the CPU.

    Raises:
        ValueError: the features do not fit, are not finite or fewer than `k1 + 1` or `k2`, or an
            option is out of range.

    Reference: Zhong et al. 2017, arXiv 1701.08398, equations 2 to 12. Rows of `D` are divided by
        their maximum as in the authors' code.
    """
    check_features(query_features, gallery_features, metric)
    _check_options(k1, k2, weight, len(query_features) + len(gallery_features))
    features = torch.cat([query_features, gallery_features])
    options = {"metric": metric, "chunk_bytes": chunk_bytes}
    nearest = _nearest(features, max(k1 + 1, k2), **options)
    members = _expanded(nearest, k1)
    encoded = _averaged(_encoded(features, members, **options), nearest[:, :k2])
    num_query = len(query_features)
    distances = _jaccard(encoded[:num_query], encoded[num_query:]).mul_(1 - weight)
    for rows, squares in _squares(features[:num_query], features, **options):
        distances[rows] += weight * squares[:, num_query:].cpu()
    return distances


def _squares(
    query: Tensor, features: Tensor, metric: str, chunk_bytes: int
) -> Iterator[tuple[slice, Tensor]]:
    """Squared distances, each row over its maximum, of some queries at a time."""
    for rows, chunk in distance_chunks(query, features, metric, chunk_bytes):
        squares = chunk.square_() if metric == "euclidean" else chunk
        greatest = squares.amax(dim=1, keepdim=True)
        yield rows, squares / greatest.masked_fill(greatest == 0, 1)


def _nearest(features: Tensor, count: int, **options) -> np.ndarray:
    """`[N, count]`: each photo itself, then the others by distance."""
    parts = []
    for rows, squares in _squares(features, features, **options):
        own = torch.arange(rows.start, rows.stop, device=squares.device)
        squares[own - rows.start, own] = -1  # first even among equal photos
        parts.append(squares.topk(count, largest=False).indices.cpu())
    return torch.cat(parts).numpy()


def _members(nearest: np.ndarray) -> csr_array:
    """`[N, N]`, 1 where the column is in the row's list."""
    num_photos, count = nearest.shape
    bounds = np.arange(0, num_photos * count + 1, count)
    return csr_array((np.ones(nearest.size), nearest.ravel(), bounds), (num_photos, num_photos))


def _reciprocal(nearest: np.ndarray, k: int) -> csr_array:
    members = _members(nearest[:, : k + 1])
    return (members * members.T).tocsr()


def _expanded(nearest: np.ndarray, k1: int) -> csr_array:
    """`R*` as the positions of what is not zero."""
    reciprocal, half = _reciprocal(nearest, k1), _reciprocal(nearest, round(k1 / 2))
    shared = reciprocal * (reciprocal @ half.T)  # |R(c, k1/2) & R(i, k1)| at c in R(i, k1)
    sizes = reciprocal * half.sum(axis=1)[None]
    candidates = (3 * shared > 2 * sizes).astype(np.float64)
    return (reciprocal + candidates @ half).tocsr()


def _encoded(features: Tensor, members: csr_array, **options) -> csr_array:
    """The rows `exp(-D)` at the members, each over its sum."""
    parts = []
    for rows, squares in _squares(features, features, **options):
        bounds = members.indptr[rows.start : rows.stop + 1]
        row = np.repeat(np.arange(len(squares)), np.diff(bounds))
        column = members.indices[bounds[0] : bounds[-1]]
        weights = np.exp(-squares.cpu().double().numpy()[row, column])
        parts.append(weights / np.bincount(row, weights)[row])
    return csr_array((np.concatenate(parts), members.indices, members.indptr), members.shape)


def _averaged(encoded: csr_array, nearest: np.ndarray) -> csr_array:
    return (_members(nearest) @ encoded / nearest.shape[1]).tocsr()


def _jaccard(query: csr_array, gallery: csr_array) -> Tensor:
    """One row at a time: only the columns where the query is not zero count."""
    by_member = gallery.T.tocsr()
    distances = torch.empty(query.shape[0], gallery.shape[0])
    for row in range(query.shape[0]):
        here = slice(query.indptr[row], query.indptr[row + 1])
        common = by_member[query.indices[here]]
        own = np.repeat(query.data[here], np.diff(common.indptr))
        least = np.minimum(common.data, own)
        shared = np.bincount(common.indices, least, minlength=gallery.shape[0])
        distances[row] = torch.from_numpy(1 - shared / (2 - shared))
    return distances


def _check_options(k1: int, k2: int, weight: float, num_photos: int) -> None:
    if k1 < 1 or k2 < 1 or max(k1 + 1, k2) > num_photos:
        raise ValueError(
            f"k1 and k2 must be at least 1, k1 less than the {num_photos} photos of queries and "
            f"gallery, k2 no more; got k1={k1} and k2={k2}"
        )
    if not 0 <= weight <= 1:
        raise ValueError(f"weight must be from 0 to 1, got {weight}")
