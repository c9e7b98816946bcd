"""Relative embeddings of stand-alone self-attention."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from posenc.encodings.base import AttentionEncoding, check_positive, flag
from posenc.functional.buckets import Axis, clipped_axis_index, fit_buckets, window_index
from posenc.functional.precision import at_least_float32
from posenc.layout import TokenLayout
from posenc.terms import LookupBias, Term


class SASA(AttentionEncoding):
    """Half of the query reads a row table, the other half a column table.

    `b[i, j] = s (q_i[:D/2] . R[d_row] + q_i[D/2:] . C[d_column])`, with s the attention's scale
    (the paper has none), D the width of a head and d key minus query, in patches. That is the
    query against the concatenation of the two embeddings. Tables are `table_rows` and
    `table_columns`, `[heads, D / 2, 2 e + 1]`, entry `d + e`, with extent e.

    With `window=w`, odd, patches attend only to the w x w patches around them, fewer at the border,
    and to prefix tokens; the bias of others is minus infinity. Pairs with a prefix token have no
    bias. Another grid needs no resampling: offsets beyond the extent read the end of a table.

    The public PyTorch code, leaderj1001/Stand-Alone-Self-Attention, takes a softmax for each
    channel, over a window padded with zeros: that is not the published formula, and not this one.

    Args:
        layout: tokens that fix the extents `height - 1` and `width - 1`, unless there is a window.
        num_heads: heads of the attention.
        head_dim: width of a head, even.
        window: side of the window, odd; its extent is `window // 2` on both axes.

    Raises:
        ValueError: an odd head_dim, or a window that is not odd.

    Initial effect: none, the tables start at zero; with a window, the others are left out.

    Reference: Ramachandran et al. 2019, arXiv 1906.05909, section 3, equation 3.

    >>> SASA(TokenLayout(2, 3), num_heads=2, head_dim=4).table_columns.shape
    torch.Size([2, 2, 5])
    """

    paper = ("Ramachandran et al. 2019", "https://arxiv.org/abs/1906.05909")
    is_sized_by_prefix = False

    table_rows: Tensor
    table_columns: Tensor

    def __init__(
        self,
        layout: TokenLayout,
        num_heads: int,
        head_dim: int,
        *,
        window: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(layout, num_heads, head_dim)
        if head_dim % 2:
            raise ValueError(
                f"SASA: head_dim must be even, one half reads rows and the other columns, got "
                f"{head_dim}"
            )
        self.window = None if window is None else _check_window(window)
        rows, columns = (side - 1 if window is None else window // 2 for side in layout.grid)
        for name, extent in (("table_rows", rows), ("table_columns", columns)):
            shape = (num_heads, head_dim // 2, 2 * extent + 1)
            self.register_parameter(
                name, nn.Parameter(torch.zeros(shape, device=device, dtype=dtype))
            )

    @flag
    def is_sized_by_grid(self) -> bool:
        """Unless there is a window."""
        return self.window is None

    def changes_at_start(self) -> bool:
        """With a window."""
        return self.window is not None

    def terms(self, q: Tensor, k: Tensor, layout: TokenLayout, scale: float) -> tuple[Term, ...]:
        """A lookup in the context of the query for each axis, and the window."""
        q = scale * q.to(at_least_float32(self.table_rows.dtype, q.dtype))
        first, second = q.chunk(2, dim=-1)
        rows = self._along(first, self.table_rows, layout, "rows")
        columns = self._along(second, self.table_columns, layout, "cols")
        if self.window is None:
            return rows, columns
        return rows, columns, _window(layout, self.window // 2, q)

    def _along(self, q: Tensor, table: Tensor, layout: TokenLayout, axis: Axis) -> LookupBias:
        index = clipped_axis_index(layout, axis, table.shape[-1] // 2)
        return LookupBias(q @ fit_buckets(table.to(q.dtype), index), index)

    def extra_repr(self) -> str:
        """Options, as printed."""
        return f"window={self.window}"


def _window(layout: TokenLayout, extent: int, like: Tensor) -> LookupBias:
    """0 inside, minus infinity outside."""
    index = window_index(layout, extent)
    table = fit_buckets(like.new_tensor([0.0, -math.inf]), index)
    return LookupBias(table[None, None, None, :], index)


def _check_window(window: int) -> int:
    check_positive(window, "window", "SASA")
    if window % 2 == 0:
        raise ValueError(f"SASA: window must be odd, a patch is in the middle of it, got {window}")
    return window
