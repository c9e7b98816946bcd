"""LeViT's attention bias."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from posenc.encodings.base import AttentionEncoding
from posenc.functional.buckets import distance_index, fit_buckets
from posenc.functional.precision import at_least_float32
from posenc.functional.resample import resample_distances
from posenc.layout import TokenLayout
from posenc.terms import LookupBias, Term


class LeViT(AttentionEncoding):
    """One learned number per head and absolute offset: `b_h[i, j] = table_h[|d_row|, |d_column|]`.

    The bias does not tell left from right, nor above from below, and has a quarter of the entries
    of `swin`. The table is `[heads, height * width]`, row-major, as in the checkpoints of LeViT.
    It is not scaled. Pairs with a prefix token have no bias; LeViT has no such tokens.

    On another grid the table is resampled on the fly, each axis in geometric spacing and linearly,
    as the table of `swin` (`posenc.functional.resample.resample_distances`), so that near offsets
    keep their meaning; the published code is for one grid.

    Args:
        layout: tokens that fix the table size.
        num_heads: heads of the attention.
        head_dim: not needed.

    Initial effect: none, the table starts at zero.

    Reference: Graham et al. 2021, arXiv 2104.01136, "Attention bias instead of a positional
    embedding".

    >>> LeViT(TokenLayout(2, 3), num_heads=4).table.shape
    torch.Size([4, 6])
    """

    paper = ("Graham et al. 2021", "https://arxiv.org/abs/2104.01136")
    is_static = True
    is_sized_by_prefix = False
    is_sized_by_grid = True

    def __init__(
        self,
        layout: TokenLayout,
        num_heads: int,
        head_dim: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(layout, num_heads, head_dim)
        shape = (num_heads, layout.num_grid)
        self.table = nn.Parameter(torch.zeros(shape, device=device, dtype=dtype))

    def changes_at_start(self) -> bool:
        """Never: the table starts at zero."""
        return False

    def terms(self, q: Tensor, k: Tensor, layout: TokenLayout, scale: float) -> tuple[Term, ...]:
        """One static lookup."""
        table = self.table.to(at_least_float32(self.table.dtype))
        table = resample_distances(table, self.layout.grid, layout.grid)
        index = distance_index(layout)
        return (LookupBias(fit_buckets(table, index)[None, :, None, :], index),)
