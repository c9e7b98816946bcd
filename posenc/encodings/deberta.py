"""Disentangled attention of DeBERTa."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from posenc.encodings.base import AttentionEncoding, check_number, check_positive
from posenc.functional.buckets import deberta_index, fit_buckets
from posenc.functional.precision import at_least_float32
from posenc.layout import TokenLayout
from posenc.terms import ContentScale, LookupBias, Term


class DeBERTa(AttentionEncoding):
    """Content meets position both ways: `s (q_i . k_j + q_i . K[d(i, j)] + k_j . Q[d(j, i)])`.

    With `s` the attention's scale divided by `sqrt(3) ** strength`: by `sqrt(3)` in the paper, as
    there are three scores. `d(i, j)` is the offset query i minus key j, each axis clipped to
    `-clip ... clip - 1`, row-major in `(2 clip)^2`; `d(j, i)` is that of the opposite offset, so
    that the query reads where the key is, and the key where the query is.

    The tables `table_k` and `table_q` are `[heads, (2 clip)^2, head_dim]`. They are the paper's
    `P W_k` and `P W_q`, one table each in the place of embeddings P, which all blocks of the paper
    share, times a projection of each block. The published code reads Q by `d(i, j)` instead: its
    rows are ours in reverse, except where offsets are clipped.

    A pair with a prefix token has the content score alone, scaled as the others. On a grid of one
    row only the row `clip` of the `2 clip` by `2 clip` offsets is read, which is the paper's table.
    Another grid needs no resampling: offsets beyond `clip` read the border of a table.

    Args:
        layout: the tokens; no parameter size depends on it.
        num_heads: heads of the attention.
        head_dim: width of a head.
        clip: number of offsets on each side of an axis, in patches: the paper's k.
        strength: 1 divides the scores by `sqrt(3)`, 0 leaves the content as it is; not learned.

    Initial effect: the content counts 0.58 times, and the tables start at zero; none with
    `strength=0`. The paper starts P and the projections at random.

    Raises:
        ValueError: `clip` is no positive int, or `strength` no finite number.

    Reference: He et al. 2021, arXiv 2006.03654, section 3.1, equations 2 to 4; there for the
    single axis of a text.

    >>> DeBERTa(TokenLayout(2, 3), num_heads=2, head_dim=4, clip=3).table_k.shape
    torch.Size([2, 36, 4])
    """

    paper = ("He et al. 2021", "https://arxiv.org/abs/2006.03654")
    is_sized_by_prefix = False

    def __init__(
        self,
        layout: TokenLayout,
        num_heads: int,
        head_dim: int,
        *,
        clip: int = 4,
        strength: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(layout, num_heads, head_dim)
        self.clip = check_positive(clip, "clip", "DeBERTa")
        self.strength = check_number(strength, "strength", "DeBERTa")
        shape = (num_heads, (2 * clip) ** 2, head_dim)
        self.table_k = nn.Parameter(torch.zeros(shape, device=device, dtype=dtype))
        self.table_q = nn.Parameter(torch.zeros(shape, device=device, dtype=dtype))

    def changes_at_start(self) -> bool:
        """Unless the content is left as it is: the tables start at zero."""
        return self.strength != 0

    def terms(self, q: Tensor, k: Tensor, layout: TokenLayout, scale: float) -> tuple[Term, ...]:
        """The scale of the content, and lookups in the context of the query and of the key."""
        index = deberta_index(layout, self.clip)
        dtype = at_least_float32(self.table_k.dtype, q.dtype)
        factor = 3 ** (-self.strength / 2)
        keys, queries = (
            factor * scale * fit_buckets(table.to(dtype), index, dim=1).mT
            for table in (self.table_k, self.table_q)
        )
        return (
            ContentScale(factor),
            LookupBias(q.to(dtype) @ keys, index),
            LookupBias(k.to(dtype) @ queries, index.T, "key"),
        )

    def extra_repr(self) -> str:
        """Options, as printed."""
        return f"clip={self.clip}, strength={self.strength:g}"
