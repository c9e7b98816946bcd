"""ALiBi in two dimensions: a penalty on distance."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from posenc.encodings.base import AttentionEncoding, check_choice, check_flag, check_number
from posenc.functional.buckets import distance_index, fit_buckets
from posenc.functional.distances import (
    alibi_slopes,
    patch_distances,
    squared_distance_factors,
    squared_distances,
)
from posenc.functional.precision import at_least_float32
from posenc.layout import TokenLayout
from posenc.terms import LookupBias, LowRankBias, Term

Distance = Literal["euclidean", "squared"]


class ALiBi2D(AttentionEncoding):
    """Each head penalizes distance with its own slope: `b_h[i, j] = -slope_h distance(i, j)`.

    The distance of two patches is Euclidean, in patches, or its square; it is symmetric, and a pair
    with a prefix token has no bias. On a grid of one row the bias is that of ALiBi, for keys on
    both sides. Other grids need no resizing. The squared form is exactly of rank 3 (4 with prefix
    tokens).

    The slopes are those of ALiBi and CROMA: `2^(-8 (h + 1) / heads)`, and for a number of heads
    that is no power of two those of the power below and then every second one of the power above
    (`posenc.functional.distances.alibi_slopes`). CROMA's code exists for square grids without
    prefix tokens only. With `learnable` they are the parameter `slopes` `[heads]`, in logits per
    patch (or per squared patch), whose sign is free; otherwise there is no parameter.

    Args:
        layout: the tokens; no parameter size depends on it.
        num_heads: the heads of the attention.
        head_dim: not needed.
        distance: "euclidean", or "squared".
        learnable: whether the slopes are trained.
        strength: what the slopes are multiplied with at the start; 0, for learnable slopes only,
            leaves the model unchanged at first.

    Raises:
        ValueError: an unknown distance, or `strength=0` with slopes that are not trained, which
            would never have an effect.

    Initial effect: near patches get more attention; none with `strength=0`.

    Reference: Fuller et al. 2023 (CROMA), arXiv 2311.00566, section 3; Press et al. 2022, arXiv
    2108.12409, section 3.

    >>> layout, q = TokenLayout(1, 3), torch.zeros(1, 8, 3, 4)
    >>> ALiBi2D(layout, num_heads=8)(q, q, layout)[0].dense()[0, 0]
    tensor([[-0.0000, -0.5000, -1.0000],
            [-0.5000, -0.0000, -0.5000],
            [-1.0000, -0.5000, -0.0000]])
    """

    paper = ("Fuller et al. 2023", "https://arxiv.org/abs/2311.00566")
    is_static = True
    is_sized_by_prefix = False

    def __init__(
        self,
        layout: TokenLayout,
        num_heads: int,
        head_dim: int | None = None,
        *,
        distance: Distance = "euclidean",
        learnable: bool = False,
        strength: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(layout, num_heads, head_dim)
        self.distance = check_choice(distance, get_args(Distance), "distance", "ALiBi2D")
        self.learnable = check_flag(learnable, "learnable", "ALiBi2D")
        self.start_strength = check_number(strength, "strength", "ALiBi2D")
        if self.start_strength == 0 and not learnable:
            raise ValueError(
                f"ALiBi2D: strength={strength!r} with slopes that are not trained would never have "
                "an effect; pass learnable=True with it"
            )
        if learnable:
            self.slopes = nn.Parameter(torch.tensor(self._start(), device=device, dtype=dtype))

    def changes_at_start(self) -> bool:
        """Unless the strength starts at zero."""
        return self.start_strength != 0

    def terms(self, q: Tensor, k: Tensor, layout: TokenLayout, scale: float) -> tuple[Term, ...]:
        """A static lookup; for squared distances one of low rank."""
        slopes = self._slopes(q)[:, None]
        index = distance_index(layout)
        distances = patch_distances if self.distance == "euclidean" else squared_distances
        table = -slopes * distances(layout, q.device, slopes.dtype)
        lookup = LookupBias(fit_buckets(table, index)[None, :, None], index)
        if self.distance == "euclidean":
            return (lookup,)
        left, right = squared_distance_factors(layout, q.device, slopes.dtype)
        left, right = left[None, None], -slopes[None, ..., None] * right
        return (LowRankBias(left, right, wide=True, exact=lookup),)

    def _slopes(self, q: Tensor) -> Tensor:
        if not self.learnable:
            return torch.tensor(self._start(), device=q.device, dtype=at_least_float32(q.dtype))
        return self.slopes.to(at_least_float32(self.slopes.dtype, q.dtype))

    def _start(self) -> list[float]:
        return [self.start_strength * slope for slope in alibi_slopes(self.num_heads)]

    def extra_repr(self) -> str:
        """Options, as printed."""
        return f"distance={self.distance}, learnable={self.learnable}"
