"""Buckets of token pairs: which table entry the offset between two patches reads."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from posenc.layout import TokenLayout
from posenc.memo import is_transformed, memoized
from posenc.pairs import PairIndex

Axis = Literal["rows", "cols"]
PrefixPairs = Literal["none", "shared", "separate"]
PREFIX_PAIRS: tuple[PrefixPairs, ...] = get_args(PrefixPairs)
IRPE_METHODS = ("product", "euclidean", "quantized", "rows", "cols")


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


def num_swin_buckets(layout: TokenLayout, prefix_pairs: str) -> int:
    """Learnable buckets of `swin_index`: one per offset, and those of prefix pairs."""
    offsets = (2 * layout.height - 1) * (2 * layout.width - 1)
    return offsets + num_prefix_buckets(layout.prefix, prefix_pairs)


@memoized
def irpe_index(
    layout: TokenLayout, method: str, ratio: float, prefix_pairs: PrefixPairs
) -> PairIndex:
    """The buckets of iRPE: `g` of an offset (query minus key), shifted by `int(2 ratio)`.

    Reference: Wu et al. 2021, section 3.3; "rows" and "cols" are the two halves of the cross
    method. "quantized" applies `g` to the squared distance, as the published code does (the
    paper's rank quantizer is not used there); the negative half of the "euclidean" and
    "quantized" tables can never be selected.
    """
    rows, columns = offset_grid(layout)
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
    axis: Any = method if method in get_args(Axis) else None
    return pair_index(layout, buckets, num_irpe_buckets(method, ratio), prefix_pairs, axis)


@memoized
def swin_index(layout: TokenLayout, prefix_pairs: PrefixPairs) -> PairIndex:
    """One bucket per offset (query minus key), row-major: `(2 height - 1)(2 width - 1)`.

    Reference: Liu et al. 2021, arXiv 2103.14030, section 3.2.
    """
    shape = (2 * layout.height - 1, 2 * layout.width - 1)
    count = shape[0] * shape[1]
    buckets = torch.arange(count, device="cpu").reshape(shape)
    return pair_index(layout, buckets, count, prefix_pairs)


@memoized
def axis_index(layout: TokenLayout, axis: Axis, prefix_pairs: PrefixPairs = "none") -> PairIndex:
    """One bucket per offset of rows, or of columns (query minus key): `2 side - 1`.

    Bucket 0 is the offset `1 - side`.
    """
    along = offset_grid(layout)[0 if axis == "rows" else 1]
    side = layout.height if axis == "rows" else layout.width
    return pair_index(layout, along + side - 1, 2 * side - 1, prefix_pairs, axis)


@memoized
def distance_index(layout: TokenLayout) -> PairIndex:
    """One bucket per absolute offset `(|d_row|, |d_column|)`, row-major: `height * width`.

    Pairs with a prefix token have the spare bucket, which stays without a bias.
    """
    rows, columns = (offset.abs() for offset in offset_grid(layout))
    return pair_index(layout, rows * layout.width + columns, layout.num_grid)


@memoized
def clipped_index(layout: TokenLayout, clip: int) -> PairIndex:
    """One bucket per offset, query minus key, of at most `clip` an axis: `(2 clip + 1)^2`.

    Larger offsets are clipped, each axis by itself. Row-major; the offset (0, 0) has the middle
    bucket.

    Reference: Shaw et al. 2018, arXiv 1803.02155, section 3.2, here for two axes.
    """
    rows, columns = (offset.clamp(-clip, clip) + clip for offset in offset_grid(layout))
    side = 2 * clip + 1
    return pair_index(layout, rows * side + columns, side * side)


@memoized
def deberta_index(layout: TokenLayout, clip: int) -> PairIndex:
    """One bucket per offset, query minus key, of `-clip` to `clip - 1` an axis: `(2 clip)^2`.

    Other offsets are clipped, each axis by itself. Row-major.

    Reference: He et al. 2021, arXiv 2006.03654, equation 3, here for two axes.
    """
    rows, columns = (offset.clamp(-clip, clip - 1) + clip for offset in offset_grid(layout))
    side = 2 * clip
    return pair_index(layout, rows * side + columns, side * side)


@memoized
def clipped_axis_buckets(side: int, clip: int) -> Tensor:
    """Buckets of one axis, key minus query clipped at `clip`, in the order of `PairIndex.buckets`.

    The offset 0 has the bucket `clip`, the middle of `2 clip + 1`.
    """
    key_minus_query = torch.arange(side - 1, -side, -1, device="cpu")
    return key_minus_query.clamp(-clip, clip) + clip


@memoized
def clipped_axis_index(layout: TokenLayout, axis: Axis, clip: int) -> PairIndex:
    """One bucket per offset of one axis, key minus query clipped at `clip`: `2 clip + 1`."""
    side = layout.height if axis == "rows" else layout.width
    along = clipped_axis_buckets(side, clip)
    shape = (2 * layout.height - 1, 2 * layout.width - 1)
    buckets = (along[:, None] if axis == "rows" else along).expand(shape)
    return pair_index(layout, buckets, 2 * clip + 1, "none", axis)


@memoized
def window_index(layout: TokenLayout, extent: int) -> PairIndex:
    """Bucket 0 for offsets of at most `extent` on both axes, bucket 1 beyond."""
    rows, columns = offset_grid(layout)
    outside = torch.maximum(rows.abs(), columns.abs()) > extent
    return pair_index(layout, outside.to(torch.int64), 2)


def log_bucket(distance: Tensor, count: int, max_distance: int) -> Tensor:
    """T5's bucket of a distance >= 0: exact up to `count // 2`, then logarithmic.

    With `e = count // 2`: the distance a itself if it is less than e, otherwise
    `min(count - 1, e + trunc(ln(a / e) / ln(max_distance / e) (count - e)))`. The logarithm is
    taken in float32, where the published code takes it.

    Args:
        distance: int64.
        count: number of buckets, at least 2.
        max_distance: from here on all distances share the last bucket; more than `count // 2`.

    Reference: Raffel et al. 2019, arXiv 1910.10683, section 2.1.

    >>> log_bucket(torch.tensor([0, 1, 2, 3, 5, 8, 100]), count=4, max_distance=8)
    tensor([0, 1, 2, 2, 3, 3, 3])
    """
    exact = count // 2
    ratio = torch.log(distance.clamp(min=exact).float() / exact) / math.log(max_distance / exact)
    far = exact + (ratio * (count - exact)).to(torch.int64)
    return torch.where(distance < exact, distance, far.clamp(max=count - 1))


def t5_bucket(offset: Tensor, num_buckets: int, max_distance: int) -> Tensor:
    """T5's bucket of an offset, key minus query: positive ones have the upper half.

    Reference: Raffel et al. 2019, arXiv 1910.10683, section 2.1, the bidirectional form.

    >>> t5_bucket(torch.tensor([-3, -1, 0, 1, 3]), num_buckets=8, max_distance=16)
    tensor([2, 1, 0, 5, 6])
    """
    half = num_buckets // 2
    return (offset > 0) * half + log_bucket(offset.abs(), half, max_distance)


def check_t5_buckets(num_buckets: int, max_distance: int, owner: str) -> None:
    """Raises unless the rule of T5 is defined for these positive numbers."""
    if num_buckets % 2 or num_buckets < 4:
        raise ValueError(f"{owner}: num_buckets must be even and at least 4, got {num_buckets}")
    if max_distance <= num_buckets // 4:
        raise ValueError(
            f"{owner}: max_distance must be more than a quarter of num_buckets, which is the "
            f"number of exact distances ({num_buckets // 4}), got {max_distance}"
        )


@memoized
def t5_axis_buckets(side: int, num_buckets: int, max_distance: int) -> Tensor:
    """The buckets of the offsets of one axis, in the order of `PairIndex.buckets`."""
    key_minus_query = torch.arange(side - 1, -side, -1, device="cpu")
    return t5_bucket(key_minus_query, num_buckets, max_distance)


def t5_along_axis(table: Tensor, side: int, max_distance: int) -> Tensor:
    """The entry of every offset of one axis, of a table `[heads, num_buckets]`: `2 side - 1`."""
    buckets = t5_axis_buckets(side, table.shape[-1], max_distance)
    return table[:, buckets.to(table.device)]


def sum_of_axes(rows: Tensor, columns: Tensor) -> Tensor:
    """`[heads, 2 height - 1]` and `[heads, 2 width - 1]`: one entry per offset, as `swin_index`."""
    return (rows[:, :, None] + columns[:, None, :]).flatten(1)


def offset_grid(layout: TokenLayout) -> tuple[Tensor, Tensor]:
    """Row and column offset, query minus key, of every entry of `PairIndex.buckets`."""
    rows = torch.arange(1 - layout.height, layout.height, device="cpu")
    columns = torch.arange(1 - layout.width, layout.width, device="cpu")
    shape = (len(rows), len(columns))
    return rows[:, None].expand(shape), columns[None, :].expand(shape)


def pair_index(
    layout: TokenLayout,
    buckets: Tensor,
    num_buckets: int,
    prefix_pairs: PrefixPairs = "none",
    axis: Axis | None = None,
) -> PairIndex:
    """An index of token pairs from the buckets of patch pairs, with buckets for prefix tokens.

    The buckets of pairs with a prefix token follow those of the grid. "none": one spare bucket,
    which stays without a bias. "shared": one bucket for all such pairs. "separate": three, for
    (prefix query, grid key), (grid query, prefix key) and (prefix query, prefix key). A layout
    without prefix tokens has none of them. `fit_buckets` gives a table the size of the index;
    the spare bucket is then zero.

    Args:
        layout: of the tokens.
        buckets: `[2 height - 1, 2 width - 1]` int64 on the CPU, the bucket of the offset (query
            row - key row, query column - key column), entry
            `[offset_row + height - 1, offset_column + width - 1]`.
        num_buckets: number of buckets of the grid; `buckets` are less than it.
        prefix_pairs: "none", "shared" or "separate".
        axis: "rows" or "cols" when the buckets depend on that offset only: backends then need
            less work.

    Raises:
        ValueError: buckets of another shape or out of range, or an unknown word.
        TypeError: buckets that are no int64 tensor, or a layout that is no TokenLayout.

    Returns:
        The index, with `num_buckets` of grid and prefix pairs together.

    >>> layout = TokenLayout(2, 3, prefix=1)
    >>> above = torch.tensor([[0] * 5, [1] * 5, [2] * 5])  # query row - key row is -1, 0, 1
    >>> index = pair_index(layout, above, num_buckets=3, prefix_pairs="shared", axis="rows")
    >>> index.num_buckets
    4
    >>> index.dense()[:3]
    tensor([[3, 3, 3, 3, 3, 3, 3],
            [3, 1, 1, 1, 0, 0, 0],
            [3, 1, 1, 1, 0, 0, 0]])
    """
    _check_buckets(layout, buckets, num_buckets, prefix_pairs)
    n = num_buckets
    if layout.prefix == 0:
        return PairIndex(layout, buckets, n, axis=axis)
    if prefix_pairs == "separate":
        return PairIndex(layout, buckets, n + 3, (n, n + 1, n + 2), axis=axis)
    return PairIndex(layout, buckets, n + 1, (n, n, n), axis=axis)


def _check_buckets(
    layout: TokenLayout, buckets: Tensor, num_buckets: int, prefix_pairs: str
) -> None:
    if not isinstance(layout, TokenLayout):
        raise TypeError(f"pair_index: layout must be a posenc.TokenLayout, got {layout!r}")
    if not isinstance(buckets, Tensor) or buckets.dtype != torch.int64:
        got = buckets.dtype if isinstance(buckets, Tensor) else type(buckets).__name__
        raise TypeError(f"pair_index: buckets must be an int64 tensor, got {got}; use .long()")
    if prefix_pairs not in PREFIX_PAIRS:
        known = ", ".join(map(repr, PREFIX_PAIRS))
        raise ValueError(f"pair_index: prefix_pairs must be one of {known}, got {prefix_pairs!r}")
    if is_transformed() or buckets.numel() == 0:  # PairIndex names the wrong shape
        return
    if buckets.min() < 0 or buckets.max() >= num_buckets:
        raise ValueError(
            f"pair_index: buckets must be 0 to num_buckets - 1 = {num_buckets - 1}, got "
            f"{int(buckets.min())} to {int(buckets.max())}"
        )


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
