"""Image relative position encoding (iRPE)."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from posenc.encodings.base import AttentionEncoding, check_choice, check_flag, check_number, flag
from posenc.functional.buckets import (
    PREFIX_PAIRS,
    PrefixPairs,
    fit_buckets,
    irpe_index,
    num_irpe_buckets,
    num_prefix_buckets,
)
from posenc.functional.precision import at_least_float32
from posenc.layout import TokenLayout
from posenc.pairs import PairIndex
from posenc.terms import LookupBias, Term, ValueLookup

Method = Literal["product", "cross", "euclidean", "quantized"]
Mode = Literal["contextual", "bias"]
Init = Literal["zero", "paper"]


class IRPE(AttentionEncoding):
    """Bucketed relative position, as a bias or in the context of queries, keys and values.

    With `s` the attention's scale, `id(i, j)` the bucket of the offset query i minus key j
    (`posenc.functional.buckets.irpe_index`) and tables `T`:

    - contextual, on k: `b[i, j] += (s q_i) . T_k[:, id(i, j)]`;
    - contextual, on q: `b[i, j] += (s k_j) . T_q[:, id(j, i)]`;
    - contextual, on v: `out_i += sum_j a[i, j] T_v[id(i, j)]`, with `a` the attention;
    - bias, on k: `b[i, j] += T_k[id(i, j)]`; on q: `b[i, j] += T_q[id(j, i)]`, both unscaled.

    The cross method is the sum of a row and a column encoding with tables of their own.
    Contextual tables are `[heads or 1, head_dim, T]` (on v `[heads or 1, T, head_dim]`), bias
    tables `[heads or 1, T]`; names `table_k`, or `table_k_rows` and `table_k_cols` for cross.
    Other grids need no resampling: the buckets are recomputed.

    The published code (microsoft/Cream) takes the root of the number of tokens for the side of the
    grid where it is not told: 16x8 patches and CLS become 11x11 patches with 8 prefix tokens,
    without an error. It remembers buckets by the grid and not by the number of prefix tokens. Of
    its tables for "euclidean" and "quantized" almost half of the rows can never be read, because a
    distance has no sign; tables here have the same sizes, so that its checkpoints fit.

    Args:
        layout: tokens that fix the table sizes.
        num_heads: heads of the attention.
        head_dim: width of a head.
        mode: "contextual" or "bias".
        method: "product", "cross", "euclidean" or "quantized".
        on: any of "q", "k", "v" together, such as "qkv".
        share_heads: one table for all heads.
        ratio: scale of the buckets; 1.9 gives 7 per axis, 49 for the product.
        prefix_pairs: pairs with a prefix token get no encoding ("none"), one extra bucket as in
            the published code ("shared"), or three ("separate": prefix query, prefix key, both).
        init: "zero", which is also the paper's start ("paper").

    Raises:
        ValueError: an unknown option, or bias mode on v, which does not exist.

    Initial effect: none.

    Reference: Wu et al. 2021, arXiv 2107.14222, sections 3.2 and 3.3.

    >>> layout = TokenLayout(2, 3, prefix=1)
    >>> irpe = IRPE(layout, num_heads=2, head_dim=4)
    >>> irpe.table_k.shape
    torch.Size([1, 4, 50])
    """

    paper = ("Wu et al. 2021", "https://arxiv.org/abs/2107.14222")

    def __init__(
        self,
        layout: TokenLayout,
        num_heads: int,
        head_dim: int,
        *,
        mode: Mode = "contextual",
        method: Method = "product",
        on: str = "k",
        share_heads: bool = True,
        ratio: float = 1.9,
        prefix_pairs: PrefixPairs = "shared",
        init: Init = "zero",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(layout, num_heads, head_dim)
        self.mode = check_choice(mode, get_args(Mode), "mode", "IRPE")
        self.method = check_choice(method, get_args(Method), "method", "IRPE")
        self.on = _check_on(on, mode)
        self.share_heads = check_flag(share_heads, "share_heads", "IRPE")
        self.ratio = _check_ratio(ratio)
        check_choice(prefix_pairs, PREFIX_PAIRS, "prefix_pairs", "IRPE")
        self.prefix_pairs = prefix_pairs
        check_choice(init, get_args(Init), "init", "IRPE")
        for name, _, target in self._tables():
            shape = self._table_shape(target, head_dim)
            self.register_parameter(
                name, nn.Parameter(torch.zeros(shape, device=device, dtype=dtype))
            )

    @flag
    def is_static(self) -> bool:
        """In bias mode."""
        return self.mode == "bias"

    @flag
    def is_sized_by_prefix(self) -> bool:
        """Unless prefix pairs have no encoding."""
        return self.prefix_pairs != "none"

    def changes_at_start(self) -> bool:
        """Never: the paper's tables are zero, too."""
        return False

    def terms(self, q: Tensor, k: Tensor, layout: TokenLayout, scale: float) -> tuple[Term, ...]:
        """One term per table."""
        return tuple(
            self._term(
                getattr(self, name),
                target,
                irpe_index(layout, axes, self.ratio, self.prefix_pairs),
                q,
                k,
                scale,
            )
            for name, axes, target in self._tables()
        )

    def _term(
        self, table: Tensor, target: str, index: PairIndex, q: Tensor, k: Tensor, scale: float
    ) -> Term:
        table = table.to(at_least_float32(table.dtype, q.dtype))
        if target == "v":
            return ValueLookup(fit_buckets(table, index, dim=-2), index)
        table = fit_buckets(table, index)
        # On q, (i, j) reads the bucket of (j, i), from the row of key j.
        index, side = (index, "query") if target == "k" else (index.T, "key")
        if self.mode == "bias":
            return LookupBias(table[None, :, None, :], index, side)
        content = (q if target == "k" else k).to(table.dtype)
        table = table[0] if self.share_heads else table
        return LookupBias(content @ (scale * table), index, side)

    def _tables(self) -> list[tuple[str, str, str]]:
        """(parameter name, bucket method, target) of every table."""
        if self.method == "cross":
            return [
                (f"table_{target}_{axes}", axes, target)
                for target in self.on
                for axes in ("rows", "cols")
            ]
        return [(f"table_{target}", self.method, target) for target in self.on]

    def _table_shape(self, target: str, head_dim: int) -> tuple[int, ...]:
        method = "rows" if self.method == "cross" else self.method
        buckets = num_irpe_buckets(method, self.ratio)
        buckets += num_prefix_buckets(self.layout.prefix, self.prefix_pairs)
        heads = 1 if self.share_heads else self.num_heads
        if self.mode == "bias":
            return (heads, buckets)
        return (heads, buckets, head_dim) if target == "v" else (heads, head_dim, buckets)

    def extra_repr(self) -> str:
        """Options, as printed."""
        return f"mode={self.mode}, method={self.method}, on={self.on}, ratio={self.ratio}"


def _check_on(on: str, mode: str) -> str:
    if not isinstance(on, str) or not on or set(on) - set("qkv") or len(set(on)) != len(on):
        raise ValueError(f'IRPE: on must be made of "q", "k" and "v", each once, got {on!r}')
    if mode == "bias" and "v" in on:
        raise ValueError(
            f'IRPE: bias mode on v does not exist (mode="bias", on={on!r}): a value table is '
            'weighted by the attention; use mode="contextual", or leave "v" out'
        )
    return "".join(target for target in "qkv" if target in on)


def _check_ratio(ratio: float) -> float:
    number = check_number(ratio, "ratio", "IRPE")
    if number < 0.5:
        raise ValueError(f"IRPE: ratio must be 0.5 (one bucket a side) or more, got {ratio!r}")
    return number
