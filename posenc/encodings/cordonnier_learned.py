"""Learned relative positions of Cordonnier et al., row and column apart."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from posenc.encodings.base import AttentionEncoding, check_flag, check_positive, flag
from posenc.functional.buckets import clipped_axis_buckets, fit_buckets, sum_of_axes, swin_index
from posenc.functional.precision import at_least_float32
from posenc.layout import TokenLayout
from posenc.terms import ContentScale, LookupBias, Term


class CordonnierLearned(AttentionEncoding):
    """Scores of the row and of the column offset: `b_h[i, j] = u_h . R[d_row] + v_h . C[d_column]`.

    The offset d is key minus query, in patches. The embeddings R and C are shared by all heads,
    `row_embedding` and `column_embedding` `[2 max_offset + 1, width]`, entry `d + max_offset`; the
    vectors u and v, `row_key` and `column_key`, are `[heads, width]`. The bias is not scaled. Pairs
    with a prefix token have no bias. Another grid needs no resampling: offsets beyond
    `max_offset`, which the published code cannot read, read the last embedding.

    The published code exchanges rows and columns: on rectangles it raises or mixes the axes. Here
    they are as in the paper.

    Args:
        layout: tokens that fix the number of embeddings, unless `max_offset` is given.
        num_heads: heads of the attention.
        head_dim: width of a head; the width of the embeddings.
        content: whether queries and keys count; if not, attention is positional alone, also with
            prefix tokens.
        max_offset: largest offset, of either axis, that has an embedding of its own; by default
            the largest of the layout.

    Raises:
        ValueError: a largest offset that is no positive int.
        TypeError: `content` is no bool.

    Initial effect: none, u and v start at zero (the embeddings are random, of standard deviation
    1); without content attention is uniform at first.

    Reference: Cordonnier et al. 2020, arXiv 1911.03584, "learned relative positional
    encoding" of the experiments.

    >>> CordonnierLearned(TokenLayout(2, 3), num_heads=4, head_dim=8).row_embedding.shape
    torch.Size([5, 8])
    """

    paper = ("Cordonnier et al. 2020", "https://arxiv.org/abs/1911.03584")
    is_static = True
    is_sized_by_prefix = False

    def __init__(
        self,
        layout: TokenLayout,
        num_heads: int,
        head_dim: int,
        *,
        content: bool = True,
        max_offset: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(layout, num_heads, head_dim)
        self.content = check_flag(content, "content", "CordonnierLearned")
        self.given_max_offset = max_offset
        if max_offset is None:
            self.max_offset = max(*layout.grid, 2) - 1
        else:
            self.max_offset = check_positive(max_offset, "max_offset", "CordonnierLearned")
        offsets, heads = (2 * self.max_offset + 1, head_dim), (num_heads, head_dim)
        self.row_embedding = nn.Parameter(torch.randn(offsets, device=device, dtype=dtype))
        self.column_embedding = nn.Parameter(torch.randn(offsets, device=device, dtype=dtype))
        self.row_key = nn.Parameter(torch.zeros(heads, device=device, dtype=dtype))
        self.column_key = nn.Parameter(torch.zeros(heads, device=device, dtype=dtype))

    @flag
    def is_sized_by_grid(self) -> bool:
        """Unless `max_offset` was given."""
        return self.given_max_offset is None

    def changes_at_start(self) -> bool:
        """Without content."""
        return not self.content

    def terms(self, q: Tensor, k: Tensor, layout: TokenLayout, scale: float) -> tuple[Term, ...]:
        """One static lookup, and without content a scale of zero."""
        index = swin_index(layout, "none")
        rows = self._along(self.row_key, self.row_embedding, layout.height)
        columns = self._along(self.column_key, self.column_embedding, layout.width)
        table = fit_buckets(sum_of_axes(rows, columns), index)
        bias = LookupBias(table[None, :, None, :], index)
        return (bias,) if self.content else (ContentScale(0.0), bias)

    def _along(self, keys: Tensor, embedding: Tensor, side: int) -> Tensor:
        """One score per offset of an axis: `[heads, 2 side - 1]`."""
        dtype = at_least_float32(keys.dtype)
        buckets = clipped_axis_buckets(side, self.max_offset).to(keys.device)
        return (keys.to(dtype) @ embedding.to(dtype).T)[:, buckets]

    def extra_repr(self) -> str:
        """Options, as printed."""
        return f"content={self.content}, max_offset={self.max_offset}"
