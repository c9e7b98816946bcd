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
from posenc.memo import Memo, memoised


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

    @property
    def T(self) -> PairIndex:  # noqa: N802, as torch and numpy spell it
        """The index with queries and keys exchanged."""
        return _transpose(self)

    def dense(self, device: torch.device | str | None = None) -> Tensor:
        """The `[N, N]` int64 map, `[query, key]`; remembered per index and device."""
        where = torch.device("cpu" if device is None else device)
        if where.type == "meta":  # shapes only: nothing to compute
            return torch.empty(2 * (self.layout.num_tokens,), dtype=torch.int64, device=where)
        return _dense_map(self, where)

    def positions(self, rows: str, device: torch.device) -> Tensor:
        """Where each pair reads in a flattened lookup table: `[N, N]` int64.

        `rows="query"` or `"key"`: one row of `T` entries per query, or per key; `"one"`: a
        single row, so that the position is the bucket.
        """
        return self.dense(device) if rows == "one" else _position_map(self, rows, device)

    def lines(self, device: torch.device) -> Lines:
        """The rows (or columns) of the grid, as `axis` says, and one line of prefix tokens."""
        return Lines(*_lines(self.layout, self.axis, device))


class Lines(NamedTuple):
    """Tokens that an axis does not tell apart, the prefix tokens first."""

    one_hot: Tensor  # [N, L] boolean, the line of each token
    first_token: Tensor  # [L], a token of each line


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


@memoised
def _position_map(index: PairIndex, rows: str, device: torch.device) -> Tensor:
    start = torch.arange(index.layout.num_tokens, device=device) * index.num_buckets
    return index.dense(device) + (start[:, None] if rows == "query" else start)


@memoised
def _transpose(index: PairIndex) -> PairIndex:
    return dataclasses.replace(index, transposed=not index.transposed)


@memoised
def _dense_map(index: PairIndex, device: torch.device) -> Tensor:
    height, width = index.layout.grid
    rows = torch.arange(height, device="cpu").repeat_interleave(width)
    columns = torch.arange(width, device="cpu").repeat(height)
    grid = index.buckets[
        rows[:, None] - rows[None, :] + height - 1, columns[:, None] - columns[None, :] + width - 1
    ]
    dense = _add_prefix(grid, index)
    return (dense.T.contiguous() if index.transposed else dense).to(device)


def _add_prefix(grid: Tensor, index: PairIndex) -> Tensor:
    if index.prefix_buckets is None:
        return grid
    prefix_to_grid, grid_to_prefix, prefix_to_prefix = index.prefix_buckets
    prefix, tokens = index.layout.prefix, index.layout.num_tokens
    dense = grid.new_full((tokens, tokens), prefix_to_prefix)
    dense[prefix:, prefix:] = grid
    dense[:prefix, prefix:] = prefix_to_grid
    dense[prefix:, :prefix] = grid_to_prefix
    return dense


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

    def positions(self) -> Tensor:
        """Where each pair reads in `lookup.flatten(-2)`: `[N, N]` int64."""
        rows = "one" if self.lookup.shape[-2] == 1 else self.side
        return self.index.positions(rows, self.lookup.device)

    def dense(self) -> Tensor:
        """`[1 or B, 1 or heads, N, N]`."""
        return read_pairs(self.lookup.flatten(-2), self.positions())

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
        batch, heads, tokens, _ = attention.shape
        pairs = self.index.dense(attention.device).expand(attention.shape)
        sums = attention.new_zeros(batch, heads, tokens, self.index.num_buckets)
        return sums.scatter_add(-1, pairs, attention) @ self.table.to(attention.dtype)

    def check(self, batch: int, heads: int, tokens: int, value_dim: int) -> None:
        """Raises unless the shapes fit values `[batch, heads, tokens, value_dim]`."""
        _check_tokens("ValueLookup", self.index, tokens)
        expected = (heads, self.index.num_buckets, value_dim)
        _check_shape("ValueLookup.table", self.table, expected, broadcast=1)


def read_pairs(flat: Tensor, positions: Tensor) -> Tensor:
    """`out[..., i, j] = flat[..., positions[i, j]]`: `[B, heads, entries]` -> `[..., N, N]`."""
    where = positions.reshape(-1).expand(*flat.shape[:-1], -1)
    return torch.gather(flat, -1, where).unflatten(-1, positions.shape)


def add_pairs(flat: Tensor, positions: Tensor, values: Tensor) -> Tensor:
    """The reverse, in place: `flat[..., positions[i, j]] += values[..., i, j]`."""
    where = positions.reshape(-1).expand(*flat.shape[:-1], -1)
    return flat.scatter_add_(-1, where, values.flatten(-2))


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
