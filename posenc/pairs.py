"""Pairs of tokens: which bucket of a table each (query, key) pair uses, and reading by it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from posenc.layout import TokenLayout
from posenc.memo import is_transformed, memoized

ALL = slice(None)
REMEMBERED_PAIRS = 2**22  # 32 MiB a map; larger ones are computed in blocks of rows


@dataclass(frozen=True, eq=False)
class PairIndex:
    """Which bucket each (query, key) pair of tokens uses.

    Small, immutable and shared by all blocks: the bucket of a pair of patches depends on their
    offset only, so `(2 height - 1)(2 width - 1)` numbers describe the `N x N` map.

    Args:
        layout: the tokens.
        buckets: `[2 height - 1, 2 width - 1]` int64 on the CPU, the bucket of the offset
            (query row - key row, query column - key column), entry
            `[offset_row + height - 1, offset_column + width - 1]`.
        num_buckets: number of buckets `T`, those of prefix pairs included.
        prefix_buckets: buckets of (prefix query, grid key), (grid query, prefix key) and
            (prefix query, prefix key); None if and only if the layout has no prefix tokens.
        transposed: pair (i, j) uses the bucket of pair (j, i).
        axis: "rows" or "cols" when the bucket of a grid pair depends on that offset only.

    >>> index = PairIndex(TokenLayout(1, 2), torch.tensor([[0, 1, 2]]), num_buckets=3)
    >>> index.dense()
    tensor([[1, 0],
            [2, 1]])
    """

    layout: TokenLayout
    buckets: Tensor
    num_buckets: int
    prefix_buckets: tuple[int, int, int] | None = None
    transposed: bool = False
    axis: str | None = None

    def __post_init__(self) -> None:
        expected = (2 * self.layout.height - 1, 2 * self.layout.width - 1)
        if tuple(self.buckets.shape) != expected:
            raise ValueError(
                f"PairIndex.buckets must have shape {expected} for the layout {self.layout}, "
                f"got {tuple(self.buckets.shape)}"
            )
        if (self.prefix_buckets is None) != (self.layout.prefix == 0):
            raise ValueError(
                f"PairIndex.prefix_buckets must be given if and only if the layout has prefix "
                f"tokens, got {self.prefix_buckets} for {self.layout}"
            )
        if self.axis not in (None, "rows", "cols"):
            raise ValueError(f'PairIndex.axis must be None, "rows" or "cols", got {self.axis!r}')
        if self.axis is not None and not is_transformed():
            first = self.buckets[:, :1] if self.axis == "rows" else self.buckets[:1]
            if not torch.equal(first.expand_as(self.buckets), self.buckets):
                raise ValueError(f"PairIndex.axis is {self.axis!r}, but the buckets vary otherwise")

    @property
    def T(self) -> PairIndex:  # noqa: N802, as torch and numpy spell it
        """The index with queries and keys exchanged."""
        return _transpose(self)

    def dense(self, device: torch.device | str | None = None) -> Tensor:
        """The `[N, N]` int64 map, `[query, key]`."""
        return self.gather_index("one", torch.device("cpu" if device is None else device))

    def gather_index(
        self, read_by: str, device: torch.device, block: slice | None = None
    ) -> Tensor:
        """Where the pairs of some queries read in a flattened lookup table: `[queries, N]` int64.

        `read_by="query"` or `"key"`: the table has one row of `T` entries per query, or per key;
        `"one"`: a single row, which is read at the bucket. Small maps are remembered.
        """
        if self.layout.num_tokens**2 <= REMEMBERED_PAIRS:
            remembered = _remembered_index(self, read_by, device)
            return remembered if block is None else remembered[block]
        return _gather_index(self, read_by, device, block or ALL)

    def offset_table(self, device: torch.device) -> OffsetTable:
        """The bucket of a pair by arithmetic, without the `N x N` map."""
        return OffsetTable(*_offset_table(self, device))

    def lines(self, device: torch.device) -> Lines:
        """The rows (or columns) of the grid, as `axis` says, and one line of prefix tokens."""
        return Lines(*_lines(self.layout, self.axis, device))

    def line_index(self, read_by: str, device: torch.device) -> Tensor:
        """As `gather_index`, for one pair of each token with each line: `[N, lines]`.

        The tokens are queries and the lines are of keys; with `read_by="key"` the other way round.
        """
        return _line_index(self, read_by, device)


class OffsetTable(NamedTuple):
    """Pair (i, j) has the bucket `buckets[query[i] - key[j]]`.

    A patch is at `row (2 width - 1) + column`, so that differences of these places are those of
    offsets; prefix tokens have places whose differences fall behind the grid's table, in one
    stretch of it for each kind of prefix pair. Places depend on the layout only.
    """

    buckets: Tensor
    query: Tensor
    key: Tensor

    def read(self, query: Tensor, key: Tensor) -> Tensor:
        """Of all pairs of these places, `[queries, keys]`."""
        return read_pairs(self.buckets, query[:, None] - key)

    def gather_index(self, read_by: str, num_buckets: int, block: slice = ALL) -> Tensor:
        """As `PairIndex.gather_index`."""
        where = self.read(self.query[block], self.key)
        if read_by == "one":
            return where
        starts = torch.arange(len(self.key), device=where.device) * num_buckets
        return where + (starts[block, None] if read_by == "query" else starts)


class Lines(NamedTuple):
    """Tokens that an axis does not tell apart, the prefix tokens first."""

    one_hot: Tensor  # [N, L] boolean, the line of each token
    first_token: Tensor  # [L], a token of each line


@memoized
def _offset_table(index: PairIndex, device: torch.device) -> tuple[Tensor, ...]:
    layout, pitch = index.layout, 2 * index.layout.width - 1
    rows = torch.arange(layout.height, device="cpu") * pitch
    patches = (rows[:, None] + torch.arange(layout.width, device="cpu")).flatten()
    last = (layout.height - 1) * pitch + layout.width - 1  # the largest place
    queries = torch.cat([patches.new_full((layout.prefix,), 3 * last + 1), patches + last])
    keys = torch.cat([patches.new_full((layout.prefix,), -2 * last - 2), patches])
    buckets = index.buckets.flatten()
    prefix = index.prefix_buckets or ()
    if index.transposed:  # the opposite offset, and prefix queries for prefix keys
        buckets = buckets.flip(0)
        prefix = (prefix[1], prefix[0], prefix[2]) if prefix else ()
    stretches = [buckets.new_full((last + 1,), bucket) for bucket in prefix]
    return tuple(x.to(device) for x in (torch.cat([buckets, *stretches]), queries, keys))


@memoized
def _remembered_index(index: PairIndex, read_by: str, device: torch.device) -> Tensor:
    return _gather_index(index, read_by, device, ALL)


def _gather_index(index: PairIndex, read_by: str, device: torch.device, block: slice) -> Tensor:
    return index.offset_table(device).gather_index(read_by, index.num_buckets, block)


@memoized
def _line_index(index: PairIndex, read_by: str, device: torch.device) -> Tensor:
    table, first = index.offset_table(device), index.lines(device).first_token
    if read_by == "key":
        where = table.read(table.query[first], table.key).T.contiguous()
    else:
        where = table.read(table.query, table.key[first])
    if read_by == "one":
        return where
    starts = torch.arange(index.layout.num_tokens, device=device) * index.num_buckets
    return where + starts[:, None]


@memoized
def _transpose(index: PairIndex) -> PairIndex:
    return dataclasses.replace(index, transposed=not index.transposed)


@memoized
def _lines(layout: TokenLayout, axis: str | None, device: torch.device) -> tuple[Tensor, Tensor]:
    if axis is None:
        raise ValueError(f"the pairs of {layout} do not depend on rows or columns alone")
    width = layout.width
    tokens = torch.arange(layout.num_grid, device=device)
    of_token = tokens // width if axis == "rows" else tokens % width
    first = tokens[::width] if axis == "rows" else tokens[:width]
    if layout.prefix:
        of_token = torch.cat([of_token.new_zeros(layout.prefix), of_token + 1])
        first = torch.cat([first.new_zeros(1), first + layout.prefix])
    return of_token[:, None] == torch.arange(len(first), device=device), first


def read_pairs(flat: Tensor, gather_index: Tensor) -> Tensor:
    """`out[..., i, j] = flat[..., gather_index[i, j]]`: `[B, heads, entries]` -> `[..., N, N]`."""
    where = gather_index.reshape(-1)
    if torch.onnx.is_in_onnx_export():
        # A plain Gather in the file. Of `gather` ONNX makes one with a position for each head,
        # which its exporter tries to evaluate and warns that it cannot beyond 64 entries.
        read = flat.index_select(-1, where)
    else:  # 5 to 12 times faster in PyTorch
        read = torch.gather(flat, -1, where.expand(*flat.shape[:-1], -1))
    return read.unflatten(-1, gather_index.shape)


def add_pairs(flat: Tensor, gather_index: Tensor, values: Tensor) -> Tensor:
    """The reverse, in place: `flat[..., gather_index[i, j]] += values[..., i, j]`."""
    where = gather_index.reshape(-1).expand(*flat.shape[:-1], -1)
    return flat.scatter_add_(-1, where, values.flatten(-2))


def sum_buckets(attention: Tensor, buckets: Tensor, num_buckets: int) -> Tensor:
    """`out[..., i, t]`: the sum of `attention[..., i, j]` over the j with `buckets[i, j] = t`."""
    sums = attention.new_zeros(*attention.shape[:-1], num_buckets)
    return sums.scatter_add(-1, buckets.expand(attention.shape), attention)
