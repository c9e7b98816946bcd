"""Distances of features, exact and made for some queries at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

METRICS = ("cosine", "euclidean")
# What a query-gallery pair needs at the peak, measured: distances in float64, sorting, two masks.
BYTES_PER_PAIR = 48
CHUNK_BYTES = 2**26
# Squared distances below this part of the squared norms are rounding, and count as zero.
ROUNDING = 2.0**-40


def distance_chunks(
    query_features: Tensor,
    gallery_features: Tensor,
    metric: str = "cosine",
    chunk_bytes: int = CHUNK_BYTES,
) -> Iterator[tuple[slice, Tensor]]:
    """Distances of some queries at a time: which queries, and `[queries, num_gallery]`.

    They are those of `score_features`, whose arguments these are, in float32.

    Raises:
        ValueError: shapes do not fit, a feature is not finite, or `metric` is unknown.
    """
    check_features(query_features, gallery_features, metric)
    query, gallery = query_features.detach().double(), gallery_features.detach().double()
    if metric == "cosine":
        query, gallery = F.normalize(query), F.normalize(gallery)
    parts = slices(len(query), len(gallery), chunk_bytes)
    return ((rows, _distances(query[rows], gallery, metric)) for rows in parts)


def _distances(query: Tensor, gallery: Tensor, metric: str) -> Tensor:
    """In float32, and zero where rounding hides the difference, so that equal features tie."""
    if metric == "cosine":  # of unit vectors
        distances = 1 - query @ gallery.T
        return distances.masked_fill_(distances < ROUNDING, 0).float()
    scale = query.square().sum(1, keepdim=True) + gallery.square().sum(1)
    squares = torch.addmm(scale, query, gallery.T, alpha=-2)
    return squares.masked_fill_(squares < ROUNDING * scale, 0).sqrt_().float()


def slices(num_query: int, num_gallery: int, chunk_bytes: int) -> Iterator[slice]:
    """Of the queries, so that each chunk needs about so much memory."""
    step = max(1, chunk_bytes // max(1, BYTES_PER_PAIR * num_gallery))
    return (slice(start, min(start + step, num_query)) for start in range(0, num_query, step))


def check_features(query: Tensor, gallery: Tensor, metric: str) -> None:
    """Raise `ValueError` for what `distance_chunks` cannot use."""
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
    if query.ndim != 2 or gallery.ndim != 2 or query.shape[1] != gallery.shape[1]:
        raise ValueError(
            "features must be [num_query, dim] and [num_gallery, dim], got "
            f"{list(query.shape)} and {list(gallery.shape)}"
        )
    for name, features in (("query", query), ("gallery", gallery)):
        bad = (~features.isfinite()).any(dim=1).nonzero()
        if len(bad):
            raise ValueError(
                f"features must be finite, {len(bad)} of {len(features)} of the {name} are not, "
                f"first number {bad[0].item()}; look for the photo or layer that makes it"
            )
