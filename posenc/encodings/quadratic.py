"""The quadratic (Gaussian) encoding, with which attention can be a convolution."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from posenc.encodings.base import AttentionEncoding, check_choice, check_flag, check_number
from posenc.functional.buckets import fit_buckets, swin_index
from posenc.functional.coordinates import patch_coordinates, patch_offsets
from posenc.functional.precision import at_least_float32
from posenc.layout import TokenLayout
from posenc.terms import LookupBias, LowRankBias, Term

Init = Literal["stencil", "normal"]


class Quadratic(AttentionEncoding):
    """Each head looks at a learned offset D: `b_h[i, j] = -g_h alpha_h |d_ij - D_h|^2`.

    `d_ij` is key minus query, (row, column), in patches; 0 for any pair with a prefix token.
    The paper's score `v^T r` with `r = (|d|^2, d_1, d_2)`, `v = -alpha (1, -2 D_1, -2 D_2)` is
    the same up to a constant per query, which softmax does not see. The term is exactly of
    rank 3 (4 with prefix tokens) and needs no resampling. A shortcut of the published code, which
    blurs values in place of attention ("gaussian blur trick"), gives other results than attention.

    With `general=True` the form is an ellipse of any direction, with a matrix L a head:
    `b_h[i, j] = -g_h / 2 |L_h^T (d_ij - D_h)|^2`, so that `L L^T` is the inverse of a covariance.

    Parameters: `centers` `[heads, 2]` in patches, `alpha` `[heads]` in 1 / patches squared (the
    paper's `1 / (2 sigma^2)`; its own parameter, because a squared spread has no gradient at
    zero), or in its place `precision_root` `[heads, 2, 2]`, the L, row before column, in 1 /
    patches; `strength` `[heads]`, the g of the formula.

    Args:
        layout: the tokens; no parameter size depends on it.
        num_heads: heads of the attention.
        head_dim: not needed.
        init: "stencil": heads take the offsets nearest the center, ties row-major, so K x K
            heads are exactly the K x K stencil (K odd); "normal": centers drawn from N(0, 2 I),
            as in the paper's experiments.
        alpha: start of `alpha`; at least 0 in the general form, which starts with the same bias,
            `L = sqrt(2 alpha) I`.
        general: an inverse covariance for each head instead of `alpha`.
        strength: start of `strength`; 0 leaves the model unchanged at first.

    Raises:
        ValueError: an unknown start, numbers that are not finite, a negative alpha with `general`.

    Initial effect: heads attend to their offset; none with `strength=0`.

    Reference: Cordonnier et al. 2020, arXiv 1911.03584, equation 9 and theorem 1; the general form
    is that of the appendix. At the border
    the attention equals, for large alpha, a convolution with replicate padding.

    >>> Quadratic(TokenLayout(2, 3), num_heads=9).centers[:3].tolist()
    [[0.0, 0.0], [-1.0, 0.0], [0.0, -1.0]]
    """

    paper = ("Cordonnier et al. 2020", "https://arxiv.org/abs/1911.03584")
    is_static = True
    is_sized_by_prefix = False

    def __init__(
        self,
        layout: TokenLayout,
        num_heads: int,
        head_dim: int | None = None,
        *,
        init: Init = "stencil",
        alpha: float = 1.0,
        general: bool = False,
        strength: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(layout, num_heads, head_dim)
        check_choice(init, get_args(Init), "init", "Quadratic")
        self.start_strength = check_number(strength, "strength", "Quadratic")
        alpha = check_number(alpha, "alpha", "Quadratic")
        device = torch.get_default_device() if device is None else device
        if init == "stencil":
            centers = _stencil(num_heads).to(
                device=device, dtype=dtype or torch.get_default_dtype()
            )
        else:
            centers = math.sqrt(2) * torch.randn(num_heads, 2, device=device, dtype=dtype)
        self.centers = nn.Parameter(centers)
        if check_flag(general, "general", "Quadratic"):
            root = _check_root(alpha) * torch.eye(2, device=device, dtype=dtype)
            self.precision_root = nn.Parameter(root.repeat(num_heads, 1, 1))
        else:
            self.alpha = nn.Parameter(torch.full((num_heads,), alpha, device=device, dtype=dtype))
        self.general = general
        self.strength = nn.Parameter(
            torch.full((num_heads,), self.start_strength, device=device, dtype=dtype)
        )

    def changes_at_start(self) -> bool:
        """Unless the strength starts at zero."""
        return self.start_strength != 0

    def terms(self, q: Tensor, k: Tensor, layout: TokenLayout, scale: float) -> tuple[Term, ...]:
        """One low-rank bias, and exactly the same as a table of offsets."""
        dtype = at_least_float32(self.centers.dtype, q.dtype)
        centers = self.centers.to(dtype)[:, None, :]
        weight = self._weight(dtype)
        left, right = self._factors(layout, centers, weight)
        return (
            LowRankBias(left[None], right[None], wide=True, exact=_table(layout, centers, weight)),
        )

    def _weight(self, dtype: torch.dtype) -> Tensor:
        """The matrix W of the bias `-(d - D)^T W (d - D)`: `[heads, 2, 2]`, symmetric."""
        strength = self.strength.to(dtype)[:, None, None]
        if self.general:
            root = self.precision_root.to(dtype)
            return strength / 2 * (root @ root.mT)
        return (
            strength
            * self.alpha.to(dtype)[:, None, None]
            * torch.eye(2, device=strength.device, dtype=dtype)
        )

    def _factors(
        self, layout: TokenLayout, centers: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        """With t = q + D: `-(k - t)^T W (k - t) = 2 t . W k - k . W k - t . W t`.

        The last part depends on the query only and is dropped for grid keys; prefix keys, whose
        bias is 0, get its opposite. The factors are `[heads, N, 3 or 4]`.
        """
        grid = patch_coordinates(layout, weight.device, weight.dtype)  # [n, 2], centered
        target = grid + centers  # [heads, n, 2]
        left = torch.cat([target.new_ones(*target.shape[:2], 1), target], dim=-1)
        right = torch.cat([-_form(grid, weight), 2 * grid @ weight], dim=-1)
        if layout.prefix:
            left = torch.cat([left, _form(target, weight)], dim=-1)
            left = torch.cat([left.new_zeros(self.num_heads, layout.prefix, 4), left], dim=1)
            prefix_keys = right.new_zeros(self.num_heads, layout.prefix, 4)
            prefix_keys[..., 3] = 1.0
            right = torch.cat([right, right.new_zeros(*right.shape[:2], 1)], dim=-1)
            right = torch.cat([prefix_keys, right], dim=1)
        return left, right


def _form(x: Tensor, weight: Tensor) -> Tensor:
    """`x^T W x`, `[heads, n, 1]`, of `[n, 2]` or `[heads, n, 2]`."""
    return ((x @ weight) * x).sum(-1, keepdim=True)


def _table(layout: TokenLayout, centers: Tensor, weight: Tensor) -> LookupBias:
    """The formula itself, once per offset: no large numbers cancel."""
    index = swin_index(layout, "none")
    offsets = patch_offsets(layout, weight.device, weight.dtype)
    bias = -_form(offsets - centers, weight)[..., 0]  # [heads, T]
    return LookupBias(fit_buckets(bias, index)[None, :, None], index)


def _check_root(alpha: float) -> float:
    """The L of a start with this alpha."""
    if alpha < 0:
        raise ValueError(
            f"Quadratic: alpha must be at least 0 with general=True, got {alpha}: an inverse "
            "covariance cannot be negative; use strength for the sign"
        )
    return math.sqrt(2 * alpha)


def _stencil(count: int) -> Tensor:
    """The `count` offsets nearest the center, nearest first, ties row-major: `[count, 2]`.

    Square rings come one after the other and each is sorted by distance, so that the first K^2
    offsets are the K x K square for every odd K.
    """
    radius = math.isqrt(count) // 2 + 1
    side = range(-radius, radius + 1)
    offsets = [(row, column) for row in side for column in side]
    offsets.sort(key=lambda d: (max(abs(d[0]), abs(d[1])), d[0] ** 2 + d[1] ** 2, d))
    return torch.tensor(offsets[:count], dtype=torch.float64, device="cpu")
