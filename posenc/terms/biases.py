"""What is added to the scores."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from posenc.memo import Memo
from posenc.pairs import PairIndex, read_pairs
from posenc.terms.base import BiasTerm, CallShape, check_shape, check_tokens

# `memo` is set only by an encoding's static cache, on terms whose tensors nobody else changes: a
# backend may keep there what it derived from them. It is no argument, so that `dataclasses.replace`
# does not hand it on to a term of other tensors.


@dataclass(frozen=True, eq=False)
class DenseBias(BiasTerm):
    """A bias that is a matrix: `b = bias`.

    Args:
        bias: `[1 or B, 1 or heads, N, N]`, query before key.
    """

    bias: Tensor
    memo: Memo | None = field(default=None, init=False, repr=False)

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

    def check(self, shape: CallShape) -> None:
        """Raises unless the shapes fit a call."""
        expected = (shape.batch, shape.heads, shape.tokens, shape.tokens)
        check_shape("DenseBias.bias", self.bias, expected, broadcast=2)


@dataclass(frozen=True, eq=False)
class LookupBias(BiasTerm):
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
    memo: Memo | None = field(default=None, init=False, repr=False)

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

    def check(self, shape: CallShape) -> None:
        """Raises unless the shapes fit a call."""
        check_tokens("LookupBias", self.index, shape.tokens)
        expected = (shape.batch, shape.heads, shape.tokens, self.index.num_buckets)
        check_shape("LookupBias.lookup", self.lookup, expected, broadcast=3)


@dataclass(frozen=True, eq=False)
class LowRankBias(BiasTerm):
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
    memo: Memo | None = field(default=None, init=False, repr=False)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name."""
        exact = {} if self.exact is None else {"exact": self.exact.lookup}
        return {"left": self.left, "right": self.right, **exact}

    @property
    def requires_grad(self) -> bool:
        """Whether a gradient must reach the bias."""
        return any(tensor.requires_grad for tensor in self.tensors().values())

    @property
    def exact_form(self) -> BiasTerm:
        """The table that it was made from, where there is one."""
        return self if self.exact is None else self.exact

    @property
    def is_wide(self) -> bool:
        """As it was made."""
        return self.wide

    def dense(self) -> Tensor:
        """`[1 or B, 1 or heads, N, N]`."""
        return self.left @ self.right.transpose(-2, -1)

    def check(self, shape: CallShape) -> None:
        """Raises unless the shapes fit a call."""
        expected = (shape.batch, shape.heads, shape.tokens, self.left.shape[-1])
        check_shape("LowRankBias.left", self.left, expected, broadcast=2)
        check_shape("LowRankBias.right", self.right, expected, broadcast=2)
        if self.exact is not None:
            self.exact.check(shape)
