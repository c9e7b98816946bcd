"""Swin V2's cosine attention."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from posenc.encodings.base import AttentionEncoding, check_number
from posenc.functional.precision import at_least_float32
from posenc.layout import TokenLayout
from posenc.terms import ContentScale, Term

LIMIT = 100.0


class CosineAttention(AttentionEncoding):
    """Swin V2's content scores are cosines: `s_h[i, j] = min(exp(l_h), 100) cos(q_i, k_j)`.

    It takes the place of `scale q k^T`, for all tokens, prefix tokens too; biases of other
    encodings are added as ever. It knows no position: it stands here because Swin V2's attention
    is `cpb+cosine`. A vector of length zero has cosine 0 with all others.

    Parameter: l `log_scale` `[heads]`, the logarithm of the scale (Swin V2's `logit_scale`
    `[heads, 1, 1]`, and 1 / tau of the paper). Above the limit it has no gradient. No size depends
    on the grid, and nothing is resampled on another one.

    Args:
        layout: the tokens; nothing depends on it.
        num_heads: heads of the attention.
        head_dim: not needed.
        scale: where the scale starts, between 0 and 100.

    Raises:
        ValueError: a scale that is not between 0 and 100.

    Initial effect: other attention from the start, in any model: no scale gives back a product
    of unnormalized queries and keys. In a model with cosine attention of its own the new scale
    takes the place of the old.

    Reference: Liu et al. 2022, arXiv 2111.09883, section 3.2, equation 2: tau is at least 0.01.

    >>> CosineAttention(TokenLayout(2, 3), num_heads=4, scale=1.0).log_scale.tolist()
    [0.0, 0.0, 0.0, 0.0]
    """

    paper = ("Liu et al. 2022", "https://arxiv.org/abs/2111.09883")
    is_static = True
    is_sized_by_prefix = False

    kind = "content"

    def __init__(
        self,
        layout: TokenLayout,
        num_heads: int,
        head_dim: int | None = None,
        *,
        scale: float = 10.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(layout, num_heads, head_dim)
        if not 0 < check_number(scale, "scale", "CosineAttention") < LIMIT:
            raise ValueError(
                f"CosineAttention: scale must be between 0 and {LIMIT:g}, both excluded: it is "
                f"learned as a logarithm, and at the limit it would not learn; got {scale!r}"
            )
        start = torch.full((num_heads,), math.log(scale), device=device, dtype=dtype)
        self.log_scale = nn.Parameter(start)

    def changes_at_start(self) -> bool:
        """Always."""
        return True

    def terms(self, q: Tensor, k: Tensor, layout: TokenLayout, scale: float) -> tuple[Term, ...]:
        """One factor per head; `attend` normalizes queries and keys."""
        log_scale = self.log_scale.to(at_least_float32(self.log_scale.dtype, q.dtype))
        factor = log_scale.clamp(max=math.log(LIMIT)).exp()
        return (ContentScale(factor[None, :, None, None], cosine=True),)
