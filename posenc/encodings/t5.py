"""T5's relative position bias, for two axes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from posenc.encodings.base import AttentionEncoding, check_positive
from posenc.functional.buckets import (
    check_t5_buckets,
    fit_buckets,
    sum_of_axes,
    swin_index,
    t5_along_axis,
)
from posenc.functional.precision import at_least_float32
from posenc.layout import TokenLayout
from posenc.terms import LookupBias, Term


class T5Bias(AttentionEncoding):
    """Logarithmic buckets per axis, summed: `b_h[i, j] = R_h[id(d_row)] + C_h[id(d_column)]`.

    The offset d is key minus query, in patches; `id` is T5's bidirectional rule
    (`posenc.functional.buckets.t5_bucket`): half of the buckets for offsets of either sign, of
    these half for small distances exactly, the rest logarithmic up to `max_distance`. Tables are
    `table_rows` and `table_columns`, `[heads, num_buckets]`. Pairs with a prefix token have no
    bias. On a grid of one row it is T5's bias, up to one number per head which softmax does not
    see. Another grid needs no resampling: the buckets are those of its offsets.

    T5 does not scale scores by `head_dim ** -0.5` and shares one table among all blocks; here the
    attention keeps its scale, and `share=True` of `patch_model` shares the tables.

    Args:
        layout: the tokens; no parameter size depends on it.
        num_heads: heads of the attention.
        head_dim: not needed.
        num_buckets: of each axis; a multiple of 2, at least 4.
        max_distance: in patches, from where on all offsets share a bucket; more than a quarter of
            `num_buckets`.

    Raises:
        ValueError: numbers that leave no room for the two parts of a half.

    Initial effect: none, the tables start at zero.

    Reference: Raffel et al. 2019, arXiv 1910.10683, section 2.1.

    >>> T5Bias(TokenLayout(2, 3), num_heads=4).table_rows.shape
    torch.Size([4, 32])
    """

    paper = ("Raffel et al. 2019", "https://arxiv.org/abs/1910.10683")
    is_static = True
    is_sized_by_prefix = False

    def __init__(
        self,
        layout: TokenLayout,
        num_heads: int,
        head_dim: int | None = None,
        *,
        num_buckets: int = 32,
        max_distance: int = 128,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(layout, num_heads, head_dim)
        self.num_buckets = check_positive(num_buckets, "num_buckets", "T5Bias")
        self.max_distance = check_positive(max_distance, "max_distance", "T5Bias")
        check_t5_buckets(num_buckets, max_distance, "T5Bias")
        shape = (num_heads, num_buckets)
        self.table_rows = nn.Parameter(torch.zeros(shape, device=device, dtype=dtype))
        self.table_columns = nn.Parameter(torch.zeros(shape, device=device, dtype=dtype))

    def changes_at_start(self) -> bool:
        """Never: the tables start at zero."""
        return False

    def terms(self, q: Tensor, k: Tensor, layout: TokenLayout, scale: float) -> tuple[Term, ...]:
        """One static lookup of the sum."""
        index = swin_index(layout, "none")
        dtype = at_least_float32(self.table_rows.dtype)
        rows = t5_along_axis(self.table_rows.to(dtype), layout.height, self.max_distance)
        columns = t5_along_axis(self.table_columns.to(dtype), layout.width, self.max_distance)
        table = fit_buckets(sum_of_axes(rows, columns), index)
        return (LookupBias(table[None, :, None, :], index),)

    def extra_repr(self) -> str:
        """Options, as printed."""
        return f"num_buckets={self.num_buckets}, max_distance={self.max_distance}"
