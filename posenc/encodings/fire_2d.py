"""FIRE in two dimensions: a learned function of the distance, relative to the grid."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posenc.encodings.base import AttentionEncoding, check_positive, check_positive_number
from posenc.functional.buckets import distance_index, fit_buckets
from posenc.functional.distances import diagonal, patch_distances
from posenc.functional.precision import at_least_float32
from posenc.layout import TokenLayout
from posenc.terms import LookupBias, Term


class FIRE2D(AttentionEncoding):
    """A small network reads the distance relative to the grid's diagonal.

    `b_h[i, j] = f_h(psi(d) / psi(max(diagonal, L)))` with `psi(x) = log(c x + 1)`. `d` is the
    Euclidean distance of the two patches and `diagonal` the largest one on the grid, both in
    patches; a pair with a prefix token has no bias. `f` has one hidden layer: 1 - width - heads,
    with ReLU.

    The paper is causal and divides by `psi(max(i, L))`, where i is the number of the query and so
    its largest distance. Attention to all sides has one largest distance, the diagonal; on a grid
    of one row, the last query reads exactly the paper's formula. On another grid the same function
    is read at distances relative to that grid; no parameter is resized. A threshold L below the
    diagonal of the grid has no effect there, and no gradient.

    Parameters: `log_c` `[1]` and `log_threshold` `[1]`, logarithms of c (in 1 / patches) and L (in
    patches), which are positive; `hidden_weight` and `hidden_bias` `[width]`; `out_weight`
    `[heads, width]` and `out_bias` `[heads]`.

    Args:
        layout: the tokens; no parameter size depends on it.
        num_heads: the heads of the attention.
        head_dim: not needed.
        width: the number of hidden units; the paper has 32.
        c: the start of c, as in the paper.
        threshold: the start of L, by default the diagonal of the image, from corner to corner, in
            patches of `layout`: just above that of the patch centers, so that L learns.

    Raises:
        ValueError: a width below 1, or c or a threshold that is not positive.

    Initial effect: none, because the last layer starts at zero.

    Reference: Li et al. 2024, arXiv 2310.04418, section 3.

    >>> fire = FIRE2D(TokenLayout(3, 4), num_heads=2)
    >>> f"{fire.log_threshold.exp().item():.3f}"
    '5.000'
    """

    paper = ("Li et al. 2024", "https://arxiv.org/abs/2310.04418")
    is_static = True
    is_sized_by_prefix = False

    def __init__(
        self,
        layout: TokenLayout,
        num_heads: int,
        head_dim: int | None = None,
        *,
        width: int = 32,
        c: float = 0.1,
        threshold: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(layout, num_heads, head_dim)
        check_positive(width, "width", "FIRE2D")
        threshold = math.hypot(*layout.grid) if threshold is None else threshold
        numbers = _logarithm(c, "c"), _logarithm(threshold, "threshold")

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(shape, device=device, dtype=dtype))

        self.log_c, self.log_threshold = parameter(1), parameter(1)  # FSDP takes no scalars
        nn.init.constant_(self.log_c, numbers[0])
        nn.init.constant_(self.log_threshold, numbers[1])
        self.hidden_weight, self.hidden_bias = parameter(width), parameter(width)
        for tensor in (self.hidden_weight, self.hidden_bias):
            nn.init.uniform_(tensor, -1, 1)  # as torch.nn.Linear with one input
        self.out_weight, self.out_bias = parameter(num_heads, width), parameter(num_heads)

    def changes_at_start(self) -> bool:
        """Never: the last layer is zero."""
        return False

    def terms(self, q: Tensor, k: Tensor, layout: TokenLayout, scale: float) -> tuple[Term, ...]:
        """A static lookup: the network reads each distance once."""
        dtype = at_least_float32(self.log_c.dtype, q.dtype)
        index = distance_index(layout)
        table = self._read(self._relative(layout, dtype)).T
        return (LookupBias(fit_buckets(table, index)[None, :, None], index),)

    def _relative(self, layout: TokenLayout, dtype: torch.dtype) -> Tensor:
        """`psi(d) / psi(max(diagonal, L))` of every bucket: `[height * width]`."""
        c, threshold = self.log_c.to(dtype).exp(), self.log_threshold.to(dtype).exp()
        distances = patch_distances(layout, c.device, dtype)
        largest = threshold.clamp(min=diagonal(layout))
        return torch.log1p(c * distances) / torch.log1p(c * largest)

    def _read(self, x: Tensor) -> Tensor:
        """f: `[T]` -> `[T, heads]`."""
        weight, bias = self.hidden_weight.to(x.dtype), self.hidden_bias.to(x.dtype)
        hidden = F.relu(x[:, None] * weight + bias)
        return hidden @ self.out_weight.to(x.dtype).T + self.out_bias.to(x.dtype)

    def extra_repr(self) -> str:
        """Options, as printed."""
        return f"width={len(self.hidden_weight)}"


def _logarithm(value: float, name: str) -> float:
    return math.log(check_positive_number(value, name, "FIRE2D"))
