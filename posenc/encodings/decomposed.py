"""Decomposed relative position: a table of rows and a table of columns, read by the query."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from posenc.encodings.base import AttentionEncoding
from posenc.functional.buckets import axis_index, fit_buckets
from posenc.functional.precision import at_least_float32
from posenc.functional.resample import resample_line
from posenc.layout import TokenLayout
from posenc.terms import LookupBias, Term

Axis = Literal["rows", "cols"]


class Decomposed(AttentionEncoding):
    """The query reads one table by row offset and one by column offset (MViTv2, ViTDet, SAM).

    `b[i, j] = q_i . table_rows[row_i - row_j + height - 1]
    + q_i . table_cols[column_i - column_j + width - 1]`, with the query as it is: not multiplied
    by the attention's scale, as in the published code. A pair with a prefix token has no bias.

    The tables are `table_rows` `[2 height - 1, head_dim]` and `table_cols`
    `[2 width - 1, head_dim]`, shared by all heads, in the form of `rel_pos_h` and `rel_pos_w` of
    published checkpoints; offsets are in patches. On another grid each table is interpolated
    linearly along its length (`align_corners=False`), as in the published code: offsets of a larger
    grid are then read relative to its size, and not in patches. The gradient reaches the stored
    table.

    Args:
        layout: the tokens that fix the sizes of the tables.
        num_heads: the heads of the attention.
        head_dim: the width of a head.

    Initial effect: none, because the tables start at zero, as in SAM.

    Reference: Li et al. 2022 (MViTv2), arXiv 2112.01526, section 4.1, equation 4; Kirillov et al.
    2023 (SAM), arXiv 2304.02643, appendix A.

    >>> encoding = Decomposed(TokenLayout(2, 3, prefix=1), num_heads=2, head_dim=4)
    >>> encoding.table_rows.shape, encoding.table_cols.shape
    (torch.Size([3, 4]), torch.Size([5, 4]))
    """

    paper = ("Li et al. 2022", "https://arxiv.org/abs/2112.01526")
    is_sized_by_prefix = False
    is_sized_by_grid = True

    def __init__(
        self,
        layout: TokenLayout,
        num_heads: int,
        head_dim: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(layout, num_heads, head_dim)
        rows, cols = (
            torch.zeros(2 * side - 1, head_dim, device=device, dtype=dtype) for side in layout.grid
        )
        self.table_rows = nn.Parameter(rows)
        self.table_cols = nn.Parameter(cols)

    def changes_at_start(self) -> bool:
        """Never: the tables are zero."""
        return False

    def terms(self, q: Tensor, k: Tensor, layout: TokenLayout, scale: float) -> tuple[Term, ...]:
        """A lookup along the rows and one along the columns."""
        return (
            self._lookup(self.table_rows, q, layout, "rows"),
            self._lookup(self.table_cols, q, layout, "cols"),
        )

    def _lookup(self, table: Tensor, q: Tensor, layout: TokenLayout, axis: Axis) -> LookupBias:
        index = axis_index(layout, axis)
        side = layout.height if axis == "rows" else layout.width
        table = table.to(at_least_float32(table.dtype, q.dtype))
        table = fit_buckets(resample_line(table, 2 * side - 1), index, dim=0)
        return LookupBias(q.to(table.dtype) @ table.T, index)
