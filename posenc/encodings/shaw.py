"""Relative position representations of Shaw et al."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from posenc.encodings.base import AttentionEncoding, check_flag, check_positive
from posenc.functional.buckets import clipped_index, fit_buckets
from posenc.functional.precision import at_least_float32
from posenc.layout import TokenLayout
from posenc.terms import LookupBias, Term, ValueLookup


class Shaw(AttentionEncoding):
    """A vector per clipped offset is added to keys, and another one to values.

    With `s` the attention's scale and `id(i, j)` the offset key j minus query i, each axis clipped
    at `clip`, row-major in `(2 clip + 1)^2`:

    - `b[i, j] = s q_i . K[id(i, j)]`;
    - `out_i += sum_j a[i, j] V[id(i, j)]`, with `a` the attention.

    The tables `table_k` and `table_v` are `[(2 clip + 1)^2, head_dim]`, shared by all heads. Pairs
    with a prefix token have no encoding. On a grid of one row only the middle row of a table is
    read, which is the paper's table. Another grid needs no resampling: offsets beyond `clip` read
    the border of the table.

    Args:
        layout: the tokens; no parameter size depends on it.
        num_heads: heads of the attention.
        head_dim: width of a head, of values too.
        clip: largest offset of an axis, in patches, that has an entry of its own.
        values: whether there is a table for values; the paper finds that keys alone may suffice.

    Raises:
        ValueError: a clip that is no positive int.
        TypeError: `values` is no bool.

    Initial effect: none, the tables start at zero. The paper starts them at random.

    Reference: Shaw et al. 2018, arXiv 1803.02155, section 3, equations 3 and 4; there for the
    single axis of a text.

    >>> Shaw(TokenLayout(2, 3), num_heads=2, head_dim=4, clip=3).table_v.shape
    torch.Size([49, 4])
    """

    paper = ("Shaw et al. 2018", "https://arxiv.org/abs/1803.02155")
    is_sized_by_prefix = False

    def __init__(
        self,
        layout: TokenLayout,
        num_heads: int,
        head_dim: int,
        *,
        clip: int = 4,
        values: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(layout, num_heads, head_dim)
        self.clip = check_positive(clip, "clip", "Shaw")
        self.values = check_flag(values, "values", "Shaw")
        shape = ((2 * clip + 1) ** 2, head_dim)
        self.table_k = nn.Parameter(torch.zeros(shape, device=device, dtype=dtype))
        if values:
            self.table_v = nn.Parameter(torch.zeros(shape, device=device, dtype=dtype))

    def changes_at_start(self) -> bool:
        """Never: the tables start at zero."""
        return False

    def terms(self, q: Tensor, k: Tensor, layout: TokenLayout, scale: float) -> tuple[Term, ...]:
        """A lookup in the context of the query, and one of values."""
        index = clipped_index(layout, self.clip).T
        dtype = at_least_float32(self.table_k.dtype, q.dtype)
        keys = fit_buckets(self.table_k.to(dtype), index, dim=0)
        bias = LookupBias(scale * q.to(dtype) @ keys.T, index)
        if not self.values:
            return (bias,)
        values = fit_buckets(self.table_v.to(dtype), index, dim=0)
        return bias, ValueLookup(values[None], index)

    def extra_repr(self) -> str:
        """Options, as printed."""
        return f"clip={self.clip}, values={self.values}"
