"""Buckets of token pairs: which table entry the offset between two patches reads."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from posenc.layout import TokenLayout
from posenc.memo import memoised
from posenc.pairs import PairIndex

IRPE_METHODS = ("product", "euclidean", "quantized", "rows", "cols")
PREFIX_PAIRS = ("none", "shared", "separate")


def piecewise_index(x: Tensor, ratio: float) -> Tensor:
    """IRPE's piecewise index function `g(x)`: exact near zero, logarithmic far away.

    With `alpha = ratio`, `beta = 2 ratio`, `gamma = 8 ratio`: for `|x| <= alpha` the value
    itself, rounded half to even; otherwise
    `trunc(sign(x) min(round(alpha + ln(|x| / alpha) / ln(gamma / alpha) (beta - alpha)), beta))`.
    The clip is at the float `beta` and truncates afterwards, so the largest index is
    `int(beta)`. The logarithm is taken in float32, where ties fall as in the published code.

    Args:
        x: integers, or float distances.
        ratio: the scale of the bucket widths, > 0.

    Reference: Wu et al. 2021, arXiv 2107.14222, equation 18.

    >>> piecewise_index(torch.tensor([-30, -3, -1, 0, 2, 7]), 1.9)
    tensor([-3, -2, -1,  0,  2,  3])
    """
    alpha, beta, gamma = ratio, 2 * ratio, 8 * ratio
    near = torch.round(x) if x.is_floating_point() else x
    distance = x.abs().to(torch.float32).clamp(min=alpha)
    # In this order of operations: with another one a tie may round the other way.
    far = torch.log(distance / alpha) / math.log(gamma / alpha) * (beta - alpha)
    far = torch.round(alpha + far)
    far = (far.clamp(max=beta) * torch.sign(x)).trunc()
    return torch.where(x.abs() <= alpha, near.to(torch.int64), far.to(torch.int64))


def num_irpe_buckets(method: str, ratio: float) -> int:
    """Buckets of grid pairs: `2 int(2 ratio) + 1`, squared for the product method."""
    side = 2 * int(2 * ratio) + 1
    return side * side if method == "product" else side


def num_prefix_buckets(prefix: int, prefix_pairs: str) -> int:
    """Learnable buckets for pairs with a prefix token; 0 when there is no prefix token."""
    return {"none": 0, "shared": 1, "separate": 3}[prefix_pairs] if prefix else 0


@memoised
def irpe_index(layout: TokenLayout, method: str, ratio: float, prefix_pairs: str) -> PairIndex:
    """The buckets of iRPE: `g` of an offset (query minus key), shifted by `int(2 ratio)`.

    Reference: Wu et al. 2021, section 3.3; "rows" and "cols" are the two halves of the cross
    method. "quantized" applies `g` to the squared distance, as the published code does (the
    paper's rank quantiser is not used there); the negative half of the "euclidean" and
    "quantized" tables can never be selected.
    """
    rows, columns = _offsets(layout)
    shift = int(2 * ratio)
    side = 2 * shift + 1
    squared = rows**2 + columns**2
    if method == "product":
        buckets = (piecewise_index(rows, ratio) + shift) * side
        buckets = buckets + piecewise_index(columns, ratio) + shift
    elif method == "euclidean":
        distance = torch.round(squared.to(torch.float32).sqrt())
        buckets = piecewise_index(distance, ratio) + shift
    else:
        along = {"quantized": squared, "rows": rows, "cols": columns}[method]
        buckets = piecewise_index(along, ratio) + shift
    axis = method if method in ("rows", "cols") else None
    return _with_prefix(layout, buckets, num_irpe_buckets(method, ratio), prefix_pairs, axis)


@memoised
def swin_index(layout: TokenLayout, prefix_pairs: str) -> PairIndex:
    """One bucket per offset (query minus key), row-major: `(2 height - 1)(2 width - 1)`.

    Reference: Liu et al. 2021, arXiv 2103.14030, section 3.2.
    """
    shape = (2 * layout.height - 1, 2 * layout.width - 1)
    count = shape[0] * shape[1]
    buckets = torch.arange(count, device="cpu").reshape(shape)
    return _with_prefix(layout, buckets, count, prefix_pairs)


def _offsets(layout: TokenLayout) -> tuple[Tensor, Tensor]:
    """Row and column offset, query minus key, of every entry of `PairIndex.buckets`."""
    rows = torch.arange(1 - layout.height, layout.height, device="cpu")
    columns = torch.arange(1 - layout.width, layout.width, device="cpu")
    shape = (len(rows), len(columns))
    return rows[:, None].expand(shape), columns[None, :].expand(shape)


def _with_prefix(
    layout: TokenLayout, buckets: Tensor, count: int, prefix_pairs: str, axis: str | None = None
) -> PairIndex:
    """Prefix pairs use the buckets after the grid's; "none" a spare slot that stays zero."""
    if layout.prefix == 0:
        return PairIndex(layout, buckets, count, axis=axis)
    if prefix_pairs == "separate":
        return PairIndex(layout, buckets, count + 3, (count, count + 1, count + 2), axis=axis)
    return PairIndex(layout, buckets, count + 1, (count, count, count), axis=axis)


def fit_buckets(table: Tensor, index: PairIndex, dim: int = -1) -> Tensor:
    """The table with exactly the buckets of `index`, which differ in prefix buckets only.

    A missing one is the spare slot of prefix pairs without a bias: zero. Extra ones belong to
    prefix tokens that this layout does not have.
    """
    missing = index.num_buckets - table.shape[dim]
    if missing < 0:
        return table.narrow(dim, 0, index.num_buckets)
    if missing > 0:
        shape = list(table.shape)
        shape[dim] = missing
        return torch.cat([table, table.new_zeros(shape)], dim=dim)
    return table
