"""Swin's relative position bias."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from posenc.encodings.base import AttentionEncoding, check_choice, flag
from posenc.functional.buckets import (
    PREFIX_PAIRS,
    PrefixPairs,
    fit_buckets,
    num_swin_buckets,
    swin_index,
)
from posenc.functional.precision import at_least_float32
from posenc.functional.resample import resample_offsets
from posenc.layout import TokenLayout
from posenc.terms import LookupBias, Term

Init = Literal["zero", "paper"]


class SwinBias(AttentionEncoding):
    """One learned number per head and offset: `b_h[i, j] = table_h[offset(i, j)]`.

    The offset is query minus key, row-major in `(2 height - 1)(2 width - 1)`: entry
    `(d_row + height - 1)(2 width - 1) + d_column + width - 1`. The table is `[heads, T]`
    (checkpoints of Swin hold `[T, heads]`). On another grid the table is resampled on the fly
    by `posenc.functional.resample.resample_offsets` (geometric, linear); entries of prefix
    pairs pass through.

    Args:
        layout: tokens that fix the table size.
        num_heads: heads of the attention.
        head_dim: not needed.
        prefix_pairs: pairs with a prefix token get 0 ("none"), one entry per head ("shared"), or
            three ("separate", as in BEiT: prefix query, prefix key, both).
        init: "zero", or "paper": normal with standard deviation 0.02, truncated at 2.

    Raises:
        ValueError: an unknown word for prefix pairs or for the start.

    Initial effect: none; with "paper" a small one.

    Reference: Liu et al. 2021, arXiv 2103.14030, section 3.2, equation 4.

    >>> SwinBias(TokenLayout(2, 3), num_heads=4).table.shape
    torch.Size([4, 15])
    """

    paper = ("Liu et al. 2021", "https://arxiv.org/abs/2103.14030")
    is_static = True
    is_sized_by_grid = True

    def __init__(
        self,
        layout: TokenLayout,
        num_heads: int,
        head_dim: int | None = None,
        *,
        prefix_pairs: PrefixPairs = "none",
        init: Init = "zero",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(layout, num_heads, head_dim)
        check_choice(prefix_pairs, PREFIX_PAIRS, "prefix_pairs", "SwinBias")
        self.prefix_pairs = prefix_pairs
        self.init = check_choice(init, get_args(Init), "init", "SwinBias")
        entries = num_swin_buckets(layout, prefix_pairs)
        self.table = nn.Parameter(torch.zeros(num_heads, entries, device=device, dtype=dtype))
        if init == "paper":
            nn.init.trunc_normal_(self.table, std=0.02)

    @flag
    def is_sized_by_prefix(self) -> bool:
        """Unless prefix pairs have no bias."""
        return self.prefix_pairs != "none"

    def changes_at_start(self) -> bool:
        """With the paper's start."""
        return self.init == "paper"

    def terms(self, q: Tensor, k: Tensor, layout: TokenLayout, scale: float) -> tuple[Term, ...]:
        """One static lookup."""
        table = self.table.to(at_least_float32(self.table.dtype))
        table = resample_offsets(table, self.layout.grid, layout.grid)
        index = swin_index(layout, self.prefix_pairs)
        return (LookupBias(fit_buckets(table, index)[None, :, None, :], index),)
