"""What is added to the output."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from posenc.pairs import PairIndex, sum_buckets
from posenc.terms.base import CallShape, Term, check_shape, check_tokens


@dataclass(frozen=True, eq=False)
class ValueLookup(Term):
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

    def check(self, shape: CallShape) -> None:
        """Raises unless the shapes fit a call."""
        check_tokens("ValueLookup", self.index, shape.tokens)
        expected = (shape.heads, self.index.num_buckets, shape.value_dim)
        check_shape("ValueLookup.table", self.table, expected, broadcast=1)
