"""BEiT's relative position bias."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor, nn

from posenc.encodings.base import AttentionEncoding, check_choice
from posenc.functional.buckets import fit_buckets, num_swin_buckets, swin_index
from posenc.functional.precision import at_least_float32
from posenc.functional.resample import OffsetInterpolation, resample_offsets
from posenc.layout import TokenLayout
from posenc.terms import LookupBias, Term


class BEiT(AttentionEncoding):
    """One learned number per head and offset, and three for CLS: `b_h[i, j] = table_h[id(i, j)]`.

    The offset is query minus key, row-major in `(2 height - 1)(2 width - 1)`, as in `swin`. With
    prefix tokens three entries follow: for (prefix query, patch key), (patch query, prefix key)
    and (prefix query, prefix key), the same for every prefix token. The bias is not scaled. The
    table is `[heads, T]` (checkpoints of BEiT hold `[T, heads]`, in the same order).

    On another grid the table is resampled on the fly in BEiT's geometric spacing
    (`posenc.functional.resample.resample_offsets`); the three entries pass through. The published
    scripts look for the ratio q from 1.01 to 1.5 only: on smaller grids they cut far offsets off,
    and beyond a certain size they extrapolate. Here q is exact.

    Args:
        layout: tokens that fix the table size.
        num_heads: heads of the attention.
        head_dim: not needed.
        interpolation: between the old offsets, "linear" as in timm, or "cubic" as in the scripts
            of BEiT, which fit a spline.

    Raises:
        ValueError: an unknown word for the interpolation.

    Initial effect: none, the table starts at zero.

    Reference: Bao et al. 2021, arXiv 2106.08254; entries for CLS and resizing are those of the
    published code.

    >>> BEiT(TokenLayout(2, 3, prefix=1), num_heads=4).table.shape
    torch.Size([4, 18])
    """

    paper = ("Bao et al. 2021", "https://arxiv.org/abs/2106.08254")
    is_static = True
    is_sized_by_grid = True

    def __init__(
        self,
        layout: TokenLayout,
        num_heads: int,
        head_dim: int | None = None,
        *,
        interpolation: OffsetInterpolation = "linear",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(layout, num_heads, head_dim)
        check_choice(interpolation, get_args(OffsetInterpolation), "interpolation", "BEiT")
        self.interpolation = interpolation
        entries = num_swin_buckets(layout, "separate")
        self.table = nn.Parameter(torch.zeros(num_heads, entries, device=device, dtype=dtype))

    def changes_at_start(self) -> bool:
        """Never: the table starts at zero."""
        return False

    def terms(self, q: Tensor, k: Tensor, layout: TokenLayout, scale: float) -> tuple[Term, ...]:
        """One static lookup."""
        table = self.table.to(at_least_float32(self.table.dtype))
        table = resample_offsets(table, self.layout.grid, layout.grid, self.interpolation)
        index = swin_index(layout, "separate")
        return (LookupBias(fit_buckets(table, index)[None, :, None, :], index),)
