"""Terms: what a position encoding contributes to attention, as data.

Symbols: query, key `[B, heads, N, D]`, value `[B, heads, N, Dv]`, scores
`s = scale * query key^T`; a bias `b` is added to `s` before softmax. Additive terms define
their truth by `dense()`; a backend may compute it in any other way. Biases are meant up to a
constant per query row over all keys, which softmax does not see.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from posenc.layout import TokenLayout
from posenc.memo import Memo, is_transformed, memoised

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
        return self.positions("one", torch.device("cpu" if device is None else device))

    def positions(self, rows: str, device: torch.device, block: slice = ALL) -> Tensor:
        """Where the pairs of some queries read in a flattened lookup table: `[queries, N]` int64.

        `rows="query"` or `"key"`: the table has one row of `T` entries per query, or per key;
        `"one"`: a single row, so that the position is the bucket. Small maps are remembered.
        """
        if self.layout.num_tokens**2 <= REMEMBERED_PAIRS:
            remembered = _position_map(self, rows, device)
            return remembered if block == ALL else remembered[block]
        return _positions(self, rows, device, block)

    def slots(self, device: torch.device) -> Slots:
        """The bucket of a pair by arithmetic, without the `N x N` map."""
        return Slots(*_slots(self, device))

    def lines(self, device: torch.device) -> Lines:
        """The rows (or columns) of the grid, as `axis` says, and one line of prefix tokens."""
        return Lines(*_lines(self.layout, self.axis, device))

    def line_positions(self, rows: str, device: torch.device) -> Tensor:
        """As `positions`, for one pair of each token with each line: `[N, lines]`.

        The tokens are queries and the lines are of keys; with `rows="key"` the other way round.
        """
        return _line_positions(self, rows, device)


class Slots(NamedTuple):
    """Pair (i, j) has the bucket `buckets[query[i] - key[j]]`.

    A patch is at `row (2 width - 1) + column`, so that differences of positions are those of
    offsets; prefix tokens have positions whose differences fall behind the grid's table, in one
    stretch of it for each kind of prefix pair. Positions depend on the layout only.
    """

    buckets: Tensor
    query: Tensor
    key: Tensor

    def read(self, query: Tensor, key: Tensor) -> Tensor:
        """Of all pairs of these positions, `[queries, keys]`."""
        return read_pairs(self.buckets, query[:, None] - key)


class Lines(NamedTuple):
    """Tokens that an axis does not tell apart, the prefix tokens first."""

    one_hot: Tensor  # [N, L] boolean, the line of each token
    first_token: Tensor  # [L], a token of each line


@memoised
def _slots(index: PairIndex, device: torch.device) -> tuple[Tensor, ...]:
    layout, pitch = index.layout, 2 * index.layout.width - 1
    rows = torch.arange(layout.height, device="cpu") * pitch
    patches = (rows[:, None] + torch.arange(layout.width, device="cpu")).flatten()
    last = (layout.height - 1) * pitch + layout.width - 1  # the largest position
    queries = torch.cat([patches.new_full((layout.prefix,), 3 * last + 1), patches + last])
    keys = torch.cat([patches.new_full((layout.prefix,), -2 * last - 2), patches])
    buckets = index.buckets.flatten()
    prefix = index.prefix_buckets or ()
    if index.transposed:  # the opposite offset, and prefix queries for prefix keys
        buckets = buckets.flip(0)
        prefix = (prefix[1], prefix[0], prefix[2]) if prefix else ()
    stretches = [buckets.new_full((last + 1,), bucket) for bucket in prefix]
    return tuple(x.to(device) for x in (torch.cat([buckets, *stretches]), queries, keys))


@memoised
def _position_map(index: PairIndex, rows: str, device: torch.device) -> Tensor:
    return _positions(index, rows, device, ALL)


def _positions(index: PairIndex, rows: str, device: torch.device, block: slice) -> Tensor:
    slots, tokens = index.slots(device), index.layout.num_tokens
    positions = slots.read(slots.query[block], slots.key)
    starts = torch.arange(tokens, device=device) * index.num_buckets
    if rows == "one":
        return positions
    return positions + (starts[block, None] if rows == "query" else starts)


@memoised
def _line_positions(index: PairIndex, rows: str, device: torch.device) -> Tensor:
    slots, first = index.slots(device), index.lines(device).first_token
    if rows == "key":
        positions = slots.read(slots.query[first], slots.key).T.contiguous()
    else:
        positions = slots.read(slots.query, slots.key[first])
    if rows == "one":
        return positions
    starts = torch.arange(index.layout.num_tokens, device=device) * index.num_buckets
    return positions + starts[:, None]


@memoised
def _transpose(index: PairIndex) -> PairIndex:
    return dataclasses.replace(index, transposed=not index.transposed)


@memoised
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


# `memo` is set only by an encoding's static cache, on terms whose tensors nobody else changes:
# a backend may keep there what it derived from them.


@dataclass(frozen=True, eq=False)
class DenseBias:
    """A bias that is a matrix: `b = bias`.

    Args:
        bias: `[1 or B, 1 or heads, N, N]`, query before key.
    """

    bias: Tensor
    memo: Memo | None = field(default=None, repr=False)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return {"bias": self.bias}

    @property
    def requires_grad(self) -> bool:
        """Whether a gradient must reach the bias."""
        return self.bias.requires_grad

    def dense(self) -> Tensor:
        """`[1 or B, 1 or heads, N, N]`."""
        return self.bias

    def check(self, batch: int, heads: int, tokens: int, value_dim: int) -> None:
        """Raises unless the shapes fit queries `[batch, heads, tokens, .]`."""
        _check_shape("DenseBias.bias", self.bias, (batch, heads, tokens, tokens), broadcast=2)


@dataclass(frozen=True, eq=False)
class LookupBias:
    """A bias read from a table by the pair's bucket.

    `side="query"`: `b[..., i, j] = lookup[..., i, index[i, j]]`;
    `side="key"`: `b[..., i, j] = lookup[..., j, index[i, j]]`.
    The index is always `[query, key]`. A static table is a lookup with one row; a contextual
    encoding has one row per token, computed from queries (or keys).

    Args:
        lookup: `[1 or B, 1 or heads, 1 or N, T]`.
        index: the bucket of each pair, `T` buckets.
        side: the token whose row of `lookup` is read.
    """

    lookup: Tensor
    index: PairIndex
    side: str = "query"
    memo: Memo | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.side not in ("query", "key"):
            raise ValueError(f'LookupBias.side must be "query" or "key", got {self.side!r}')

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return {"lookup": self.lookup}

    @property
    def requires_grad(self) -> bool:
        """Whether a gradient must reach the bias."""
        return self.lookup.requires_grad

    @property
    def rows(self) -> str:
        """Whose row of the table a pair reads: "one" for all, "query" or "key"."""
        return "one" if self.lookup.shape[-2] == 1 else self.side

    def dense(self) -> Tensor:
        """`[1 or B, 1 or heads, N, N]`."""
        positions = self.index.positions(self.rows, self.lookup.device)
        return read_pairs(self.lookup.flatten(-2), positions)

    def check(self, batch: int, heads: int, tokens: int, value_dim: int) -> None:
        """Raises unless the shapes fit queries `[batch, heads, tokens, .]`."""
        _check_tokens("LookupBias", self.index, tokens)
        expected = (batch, heads, tokens, self.index.num_buckets)
        _check_shape("LookupBias.lookup", self.lookup, expected, broadcast=3)


@dataclass(frozen=True, eq=False)
class LowRankBias:
    """A bias that is a product of two thin factors: `b = left right^T`.

    Args:
        left: `[1 or B, 1 or heads, N, r]`, rows belong to queries.
        right: `[1 or B, 1 or heads, N, r]`, rows belong to keys.
        wide: the products of the factors span more than 16-bit floats resolve.
        exact: the same bias, up to a constant per query, read from a table: without the rounding
            of wide factors. Backends that need no factors use it instead.
    """

    left: Tensor
    right: Tensor
    wide: bool = False
    exact: LookupBias | None = None
    memo: Memo | None = field(default=None, repr=False)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name."""
        exact = {} if self.exact is None else {"exact": self.exact.lookup}
        return {"left": self.left, "right": self.right, **exact}

    @property
    def requires_grad(self) -> bool:
        """Whether a gradient must reach the bias."""
        return any(tensor.requires_grad for tensor in self.tensors().values())

    def dense(self) -> Tensor:
        """`[1 or B, 1 or heads, N, N]`."""
        return self.left @ self.right.transpose(-2, -1)

    def check(self, batch: int, heads: int, tokens: int, value_dim: int) -> None:
        """Raises unless the shapes fit queries `[batch, heads, tokens, .]`."""
        rank = self.left.shape[-1]
        _check_shape("LowRankBias.left", self.left, (batch, heads, tokens, rank), broadcast=2)
        _check_shape("LowRankBias.right", self.right, (batch, heads, tokens, rank), broadcast=2)
        if self.exact is not None:
            self.exact.check(batch, heads, tokens, value_dim)


@dataclass(frozen=True, eq=False)
class ValueLookup:
    """Values read from a table: `out_i += sum_j a_ij table[index[i, j]]`.

    `a` is the attention after dropout, as it multiplies the values.

    Args:
        table: `[1 or heads, T, Dv]`.
        index: the bucket of each pair, `T` buckets.
    """

    table: Tensor
    index: PairIndex

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return {"table": self.table}

    def apply(self, attention: Tensor) -> Tensor:
        """`[B, heads, N, N]` -> `[B, heads, N, Dv]`: sums per bucket, times the table."""
        buckets = self.index.dense(attention.device)
        sums = sum_buckets(attention, buckets, self.index.num_buckets)
        return sums @ self.table.to(attention.dtype)

    def check(self, batch: int, heads: int, tokens: int, value_dim: int) -> None:
        """Raises unless the shapes fit values `[batch, heads, tokens, value_dim]`."""
        _check_tokens("ValueLookup", self.index, tokens)
        expected = (heads, self.index.num_buckets, value_dim)
        _check_shape("ValueLookup.table", self.table, expected, broadcast=1)


def read_pairs(flat: Tensor, positions: Tensor) -> Tensor:
    """`out[..., i, j] = flat[..., positions[i, j]]`: `[B, heads, entries]` -> `[..., N, N]`."""
    where = positions.reshape(-1)
    if torch.onnx.is_in_onnx_export():
        # A plain Gather in the file. Of `gather` ONNX makes one with a position for each head,
        # which its exporter tries to evaluate and warns that it cannot beyond 64 entries.
        read = flat.index_select(-1, where)
    else:  # 5 to 12 times faster in PyTorch
        read = torch.gather(flat, -1, where.expand(*flat.shape[:-1], -1))
    return read.unflatten(-1, positions.shape)


def add_pairs(flat: Tensor, positions: Tensor, values: Tensor) -> Tensor:
    """The reverse, in place: `flat[..., positions[i, j]] += values[..., i, j]`."""
    where = positions.reshape(-1).expand(*flat.shape[:-1], -1)
    return flat.scatter_add_(-1, where, values.flatten(-2))


def sum_buckets(attention: Tensor, buckets: Tensor, num_buckets: int) -> Tensor:
    """`out[..., i, t]`: the sum of `attention[..., i, j]` over the j with `buckets[i, j] = t`."""
    sums = attention.new_zeros(*attention.shape[:-1], num_buckets)
    return sums.scatter_add(-1, buckets.expand(attention.shape), attention)


BiasTerm = DenseBias | LookupBias | LowRankBias
Term = BiasTerm | ValueLookup


def _check_tokens(name: str, index: PairIndex, tokens: int) -> None:
    if index.layout.num_tokens != tokens:
        raise ValueError(
            f"{name}: the layout {index.layout} has {index.layout.num_tokens} tokens, "
            f"but the queries have {tokens}; pass the layout of these tokens"
        )


def _check_shape(name: str, tensor: Tensor, expected: tuple[int, ...], broadcast: int) -> None:
    """The first `broadcast` dimensions may also be 1."""
    shape = tuple(tensor.shape)
    fits = len(shape) == len(expected) and all(
        size == want or (size == 1 and axis < broadcast)
        for axis, (size, want) in enumerate(zip(shape, expected, strict=True))
    )
    if not fits:
        rule = ", ".join(
            f"1 or {want}" if axis < broadcast else str(want) for axis, want in enumerate(expected)
        )
        raise ValueError(f"{name} must have shape [{rule}] for these queries, got {list(shape)}")
