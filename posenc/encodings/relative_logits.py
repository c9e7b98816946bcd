"""Relative logits: a few learned profiles of offsets, which each query mixes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from posenc.encodings.base import AttentionEncoding, check_choice, check_flag, check_positive, flag
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
from posenc.pairs import PairIndex
from posenc.terms import DenseBias, LookupBias, Term


class RelativeLogits(AttentionEncoding):
    """Each query mixes biases of the offset, as in Inkling: `b_h[i, j] = (W_h q_i) . B[offset]`.

    The offset is query minus key, row-major in `(2 height - 1)(2 width - 1)`, as in `SwinBias`.
    The query is taken as it is, and the bias is not multiplied by the attention's scale.

    Parameters: `projection`, the W, `[heads, width, head_dim]`, and `table`, the B,
    `[1, width, T]` for T offsets, or `[heads, width, T]` with `share_heads=False`. On another grid
    the table is resampled on the fly by `posenc.functional.resample.resample_offsets` (geometric,
    linear), each of its profiles by itself; entries of prefix pairs pass through. The gradient
    reaches the stored table.

    Args:
        layout: tokens that fix the size of the table.
        num_heads: heads of the attention.
        head_dim: width of a head.
        width: number of profiles, the rank of the bias as a function of query and offset.
        share_heads: one table for all heads; each head has a projection of its own in any case.
            A table for each head costs about twice the time.
        prefix_pairs: pairs with a prefix token get 0 ("none"), one entry of each profile
            ("shared"), or three ("separate": prefix query, prefix key, both).

    Raises:
        ValueError: a width that is no positive int, an unknown word for prefix pairs.
        TypeError: `share_heads` is no bool.

    Initial effect: none, the table starts at zero. The projection starts random, with a standard
    deviation of `head_dim ** -0.5`; its first gradient is therefore zero, the table's is not.

    Reference: no paper; this is the attention bias of Inkling (`InklingRelativeLogits` of
    Hugging Face's transformers), whose W reads the token before the attention instead of the
    head's query, and whose B starts random and has offsets of a causal text: a grid of one row
    whose later keys are masked.

    >>> encoding = RelativeLogits(TokenLayout(2, 3), num_heads=2, head_dim=4)
    >>> encoding.projection.shape, encoding.table.shape
    (torch.Size([2, 16, 4]), torch.Size([1, 16, 15]))
    """

    paper = ("Inkling", "https://huggingface.co/docs/transformers/model_doc/inkling")
    is_sized_by_grid = True

    def __init__(
        self,
        layout: TokenLayout,
        num_heads: int,
        head_dim: int,
        *,
        width: int = 16,
        share_heads: bool = True,
        prefix_pairs: PrefixPairs = "none",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(layout, num_heads, head_dim)
        self.width = check_positive(width, "width", "RelativeLogits")
        self.share_heads = check_flag(share_heads, "share_heads", "RelativeLogits")
        check_choice(prefix_pairs, PREFIX_PAIRS, "prefix_pairs", "RelativeLogits")
        self.prefix_pairs = prefix_pairs
        projection = torch.randn(num_heads, width, head_dim, device=device, dtype=dtype)
        self.projection = nn.Parameter(projection * head_dim**-0.5)
        entries = num_swin_buckets(layout, prefix_pairs)
        shape = (1 if share_heads else num_heads, width, entries)
        self.table = nn.Parameter(torch.zeros(shape, device=device, dtype=dtype))

    @flag
    def is_sized_by_prefix(self) -> bool:
        """Unless prefix pairs have no bias."""
        return self.prefix_pairs != "none"

    def changes_at_start(self) -> bool:
        """Never: the table starts at zero."""
        return False

    def terms(self, q: Tensor, k: Tensor, layout: TokenLayout, scale: float) -> tuple[Term, ...]:
        """One bias: a matrix, or a lookup in the context of the query where heads differ.

        There are about four times as many offsets as keys, and a query meets a quarter of them: to
        mix only these is cheaper, but needs the profiles of every pair, which one table has to
        share.
        """
        index = swin_index(layout, self.prefix_pairs)
        dtype = at_least_float32(self.table.dtype, q.dtype)
        mixing = q.to(dtype) @ self.projection.to(dtype).mT  # [B, heads, N, width]
        profiles = self._profiles(index, dtype)
        if self.share_heads:
            return (DenseBias(_mix_pairs(mixing, profiles[0], index)),)
        return (LookupBias(mixing @ profiles, index),)

    def _profiles(self, index: PairIndex, dtype: torch.dtype) -> Tensor:
        """The table with one entry per bucket: `[1 or heads, width, T]`."""
        lines = self.table.to(dtype).flatten(0, 1)  # resampled one by one
        lines = resample_offsets(lines, self.layout.grid, index.layout.grid)
        return fit_buckets(lines, index).unflatten(0, self.table.shape[:2])

    def extra_repr(self) -> str:
        """Options, as printed."""
        return (
            f"width={self.width}, share_heads={self.share_heads}, prefix_pairs={self.prefix_pairs}"
        )


def _mix_pairs(mixing: Tensor, profiles: Tensor, index: PairIndex) -> Tensor:
    """`b[..., i, j] = mixing[..., i, :] . profiles[:, index[i, j]]`, `[B, heads, N, N]`.

    A product of `[B heads, width]` and `[width, N]` for each query.
    """
    buckets = index.dense(mixing.device)
    of_pairs = (
        profiles.T.contiguous().index_select(0, buckets.flatten()).unflatten(0, buckets.shape)
    )
    by_query = torch.bmm(mixing.flatten(0, 1).transpose(0, 1), of_pairs.mT)  # [N, B heads, N]
    return by_query.transpose(0, 1).unflatten(0, mixing.shape[:2])
