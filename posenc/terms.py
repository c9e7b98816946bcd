"""Terms: what a position encoding contributes to attention, as data.

Symbols: query, key `[B, heads, N, D]`, value `[B, heads, N, Dv]`, scores
`s = scale * query key^T`; a bias `b` is added to `s` before softmax. Additive terms define
their truth by `dense()`; a backend may compute it in any other way. Biases are meant up to a
constant per query row over all keys, which softmax does not see.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from posenc.memo import Memo
from posenc.pairs import PairIndex, read_pairs, sum_buckets

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
    def read_by(self) -> str:
        """Whose row of the table a pair reads: "one" for all, "query" or "key"."""
        return "one" if self.lookup.shape[-2] == 1 else self.side

    def dense(self) -> Tensor:
        """`[1 or B, 1 or heads, N, N]`."""
        where = self.index.gather_index(self.read_by, self.lookup.device)
        return read_pairs(self.lookup.flatten(-2), where)

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
