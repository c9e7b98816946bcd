"""Relative positions in the context of keys and queries, of Huang et al."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from posenc.encodings.base import AttentionEncoding, check_choice, check_positive
from posenc.functional.buckets import clipped_index, fit_buckets
from posenc.functional.precision import at_least_float32
from posenc.layout import TokenLayout
from posenc.terms import LookupBias, Term

Form = Literal["key_query", "key"]


class Huang(AttentionEncoding):
    """A vector per clipped offset meets both query and key: `b[i, j] = s (q_i + k_j) . A[id]`.

    With `s` the attention's scale and `id(i, j)` the offset query i minus key j, each axis clipped
    at `clip`, row-major in `(2 clip + 1)^2`. The same table A stands for both: with the content it
    is `s ((q_i + A) . (k_j + A) - A . A)`, method 4 of the paper and `relative_key_query` of
    Hugging Face. `form="key"` leaves `k_j . A` out, as `relative_key` there.

    `table` is `[(2 clip + 1)^2, head_dim]`, shared by all heads. Pairs with a prefix token have no
    encoding. On a grid of one row only the middle row of the table is read, which is the table of
    Hugging Face; theirs is not clipped, an offset beyond it is an index error. Another grid needs
    no resampling: offsets beyond `clip` read the border of the table.

    Args:
        layout: the tokens; no parameter size depends on it.
        num_heads: heads of the attention.
        head_dim: width of a head.
        form: "key_query" or "key".
        clip: largest offset of an axis, in patches, that has an entry of its own.

    Raises:
        ValueError: an unknown form, or a clip that is no positive int.

    Initial effect: none, the table starts at zero.

    Reference: Huang et al. 2020, arXiv 2009.13658, method 4; there for the single axis of a
    text.

    >>> Huang(TokenLayout(2, 3), num_heads=2, head_dim=4, clip=3).table.shape
    torch.Size([49, 4])
    """

    paper = ("Huang et al. 2020", "https://arxiv.org/abs/2009.13658")
    is_sized_by_prefix = False

    def __init__(
        self,
        layout: TokenLayout,
        num_heads: int,
        head_dim: int,
        *,
        form: Form = "key_query",
        clip: int = 4,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(layout, num_heads, head_dim)
        self.form = check_choice(form, get_args(Form), "form", "Huang")
        self.clip = check_positive(clip, "clip", "Huang")
        shape = ((2 * clip + 1) ** 2, head_dim)
        self.table = nn.Parameter(torch.zeros(shape, device=device, dtype=dtype))

    def changes_at_start(self) -> bool:
        """Never: the table starts at zero."""
        return False

    def terms(self, q: Tensor, k: Tensor, layout: TokenLayout, scale: float) -> tuple[Term, ...]:
        """A lookup in the context of the query, and one in the context of the key."""
        index = clipped_index(layout, self.clip)
        dtype = at_least_float32(self.table.dtype, q.dtype)
        table = scale * fit_buckets(self.table.to(dtype), index, dim=0).T
        of_query = LookupBias(q.to(dtype) @ table, index)
        if self.form == "key":
            return (of_query,)
        return of_query, LookupBias(k.to(dtype) @ table, index, "key")

    def extra_repr(self) -> str:
        """Options, as printed."""
        return f"form={self.form}, clip={self.clip}"
