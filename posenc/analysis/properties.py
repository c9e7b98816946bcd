"""What positions are like: whether a matrix of pairs follows from offsets, grows and mirrors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from posenc.analysis.checks import check_floating
from posenc.encodings.base import check_layout, is_finite
from posenc.functional.buckets import distance_index, swin_index
from posenc.functional.distances import squared_distances
from posenc.functional.precision import at_least_float32
from posenc.layout import TokenLayout


def invariance(matrix: Tensor, layout: TokenLayout) -> Tensor:
    """How far a matrix of pairs depends on their offset alone (translation invariance).

    `1 - min_{f, c} sum_ij (m_ij - f(p_j - p_i) - c_i)^2 / sum_ij (m_ij - mean_j m_ij)^2` over pairs
    of patches: the share of the variance over keys that some function f of the offset (rows,
    columns) explains. Each row has a constant c_i of its own, which softmax does not see. 1: the
    offset tells all. nan where no row varies.

    Args:
        matrix: `[..., N, N]` of all tokens, such as a bias, or `[..., n, n]` of the patches, such
            as `position_similarity(table, layout).reshape(n, n)` of a table.
        layout: of the tokens; pairs with prefix tokens are left out.

    Raises:
        ValueError: a shape that does not fit the layout, or values that are not finite.
        TypeError: no floating point tensor.

    Returns:
        `[...]`, 0 to 1, in at least float32.

    Reference: the property is defined by Wang et al., "On Position Embeddings in BERT", ICLR 2021,
    for one dimension, as an equality; the share is ours.

    >>> column = torch.arange(3.0).repeat(2)
    >>> round(invariance(-(column[:, None] - column).abs(), TokenLayout(2, 3)).item(), 4)
    1.0
    """
    pairs = _pairs(matrix, layout, "invariance")
    centered = pairs - pairs.mean(dim=-1, keepdim=True)
    offsets = swin_index(_patches(layout), "none").dense(pairs.device)  # one bucket an offset
    count = (2 * layout.height - 1) * (2 * layout.width - 1)
    seen = torch.zeros(len(offsets), count, dtype=pairs.dtype, device=pairs.device)
    seen.scatter_(1, offsets, 1.0)  # which offsets a query has keys at
    # Least squares in f; the constants of rows have been eliminated. f itself has a constant.
    normal = torch.diag(seen.sum(dim=0)) - seen.T @ seen / len(offsets) + 1 / count
    sums = centered.new_zeros(*pairs.shape[:-2], count)
    flat = offsets.flatten().expand(*pairs.shape[:-2], -1)
    sums = sums.scatter_add(-1, flat, centered.flatten(-2))
    function = torch.linalg.solve(normal, sums[..., None])[..., 0]
    explained = (function * sums).sum(dim=-1)
    return explained / centered.square().sum(dim=(-2, -1))


def symmetry(matrix: Tensor, layout: TokenLayout) -> Tensor:
    """How far pairs are alike in both directions.

    `(1 + <m, m^T> / <m, m>) / 2` of the pairs of patches, with `m` minus its means over keys and
    over queries (a constant of a row is not seen by softmax, and mirrored it is one of a column).
    It is the share of the squared norm in the symmetric part: 1 for `m = m^T`, 0 for `m = -m^T`,
    nan for a matrix without such a part.

    Args:
        matrix: as for `invariance`.
        layout: of the tokens; pairs with prefix tokens are left out.

    Raises:
        ValueError: a shape that does not fit the layout, or values that are not finite.
        TypeError: no floating point tensor.

    Returns:
        `[...]`, 0 to 1, in at least float32.

    Reference: the property is defined by Wang et al., "On Position Embeddings in BERT", ICLR 2021,
    as an equality; the share is ours.

    >>> symmetry(torch.arange(36.0).view(6, 6).square(), TokenLayout(2, 3)) > 0.9
    tensor(True)
    """
    pairs = _pairs(matrix, layout, "symmetry")
    pairs = pairs - pairs.mean(dim=-1, keepdim=True)
    pairs = pairs - pairs.mean(dim=-2, keepdim=True)
    mirrored = (pairs * pairs.transpose(-2, -1)).sum(dim=(-2, -1))
    return (1 + mirrored / pairs.square().sum(dim=(-2, -1))) / 2


def monotonicity(matrix: Tensor, layout: TokenLayout) -> Tensor:
    """How often the nearer of two patches has the larger value.

    The share of triples of a query i and two keys j, k with `|p_j - p_i| < |p_k - p_i|` (centers
    of patches) for which `m_ij > m_ik`; equal values count half. 1: values fall with distance.
    0.5: they do not follow it. 0: they rise. nan where all keys are equally far.

    Args:
        matrix: as for `invariance`.
        layout: of the tokens; pairs with prefix tokens are left out.

    Raises:
        ValueError: a shape that does not fit the layout, or values that are not finite.
        TypeError: no floating point tensor.

    Returns:
        `[...]`, in at least float32.

    Reference: the property is defined by Wang et al., "On Position Embeddings in BERT", ICLR 2021,
    for all triples; the share is ours.

    >>> column = torch.arange(3.0)
    >>> monotonicity(-(column[:, None] - column).square(), TokenLayout(1, 3))
    tensor(1.)
    """
    pairs = _pairs(matrix, layout, "monotonicity")
    kinds = distance_index(_patches(layout)).dense(pairs.device)
    squares = squared_distances(layout, pairs.device, torch.float64)[kinds]
    right, total = pairs.new_zeros(pairs.shape[:-2]), 0
    for query, distances in enumerate(squares):
        row = pairs[..., query, :]
        nearer = distances[:, None] < distances
        order = (row[..., :, None] - row[..., None, :]).sign()
        right = right + ((1 + order) / 2 * nearer).sum(dim=(-2, -1))
        total += int(nearer.sum())
    return right / total if total else torch.full_like(right, float("nan"))


def _pairs(matrix: Any, layout: TokenLayout, name: str) -> Tensor:
    """The pairs of patches, `[..., n, n]`."""
    check_layout(layout, name)
    check_floating(matrix, f"{name}: matrix")
    sides = (layout.num_tokens, layout.num_grid)
    if matrix.dim() < 2 or matrix.shape[-1] != matrix.shape[-2] or matrix.shape[-1] not in sides:
        raise ValueError(
            f"{name}: matrix must be [..., {sides[0]}, {sides[0]}] for the tokens of {layout}, or "
            f"[..., {sides[1]}, {sides[1]}] for its patches, got {list(matrix.shape)}"
        )
    pairs = matrix[..., -layout.num_grid :, -layout.num_grid :]
    if not is_finite(pairs):
        raise ValueError(
            f"{name}: matrix has values that are not finite (pairs that a mask hides?), for which "
            "the property is not defined"
        )
    return pairs.to(at_least_float32(pairs.dtype))


def _patches(layout: TokenLayout) -> TokenLayout:
    """Without prefix tokens."""
    return TokenLayout(*layout.grid)
