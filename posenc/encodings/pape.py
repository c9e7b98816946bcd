"""PaPE: each query weighs its keys by parabolas of their offset."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, softplus

from posenc.encodings.base import AttentionEncoding, check_flag, check_number, check_positive
from posenc.functional.coordinates import patch_coordinates
from posenc.functional.precision import at_least_float32
from posenc.layout import TokenLayout
from posenc.terms import LowRankBias, Term


class PaPE(AttentionEncoding):
    """Each query adds up parabolas of the offset: `b_h[i, j] = sum_p -a_ip u_p^2 + b_ip u_p`.

    `u_p = w_hp . d_ij` is the offset `d_ij`, query minus key, (row, column) in patches, along the
    learned direction of parabola p; 0 for any pair with a prefix token. The coefficients are read
    from the head's query: `a_ip = softplus(A_hp . q_i)`, never negative, so that no parabola grows
    with distance, and `b_ip = B_hp . q_i`, which tells directions apart.

    All parabolas together are one quadratic form of the offset, so that the bias is exactly of
    rank 5 (6 with prefix tokens), whatever their number, and costs what `Quadratic` costs. It is
    not multiplied by the attention's scale. Nothing is resampled on another grid: the parabolas go
    on.

    With `rotation_invariant=True` the bias depends on the distance alone:
    `b_h[i, j] = -g_h a_i |d_ij|^2` with one coefficient `a_i = softplus(A_h . q_i)`.

    Parameters: `directions`, the w, `[heads, parabolas, 2]`, in 1 / patches; `curvature`, the A,
    and `slope`, the B, both `[heads, parabolas, head_dim]`. If rotation invariant: `strength`, the
    g, `[heads]`, in 1 / patches squared, and `curvature` `[heads, 1, head_dim]`.

    Args:
        layout: the tokens; no parameter size depends on it.
        num_heads: heads of the attention.
        head_dim: width of a head.
        parabolas: their number for each head, 8 if None; the paper's configurations have 50.
            Each reads the query twice.
        rotation_invariant: the form that sees the distance alone, which has one parabola.
        start: standard deviation of the first directions, in 1 / patches, or the first
            `strength`; 0 leaves the model unchanged at first.

    Raises:
        ValueError: a number of parabolas that is no positive int, or is given with
            `rotation_invariant`; a negative or infinite start.
        TypeError: `rotation_invariant` is no bool.

    Initial effect: none with `start=0`. The coefficients start random, with A and B of a standard
    deviation of `head_dim ** -0.5`; the first gradient reaches the directions alone, by way of
    the slopes.

    Reference: Øhrstrøm et al. 2026, arXiv 2602.01418 (PaPE and PaPE-RI). There the coefficients
    are read from the token that enters attention, for all heads at once, and positions are
    columns beside queries and keys, which the attention's scale multiplies too; g is the square of
    a number that is drawn for each head and not learned.

    >>> encoding = PaPE(TokenLayout(2, 3), num_heads=2, head_dim=8, parabolas=3)
    >>> encoding.directions.shape, encoding.curvature.shape
    (torch.Size([2, 3, 2]), torch.Size([2, 3, 8]))
    """

    paper = ("Øhrstrøm et al. 2026", "https://arxiv.org/abs/2602.01418")
    is_sized_by_prefix = False

    def __init__(
        self,
        layout: TokenLayout,
        num_heads: int,
        head_dim: int,
        *,
        parabolas: int | None = None,
        rotation_invariant: bool = False,
        start: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(layout, num_heads, head_dim)
        self.rotation_invariant = check_flag(rotation_invariant, "rotation_invariant", "PaPE")
        self.parabolas = _check_parabolas(parabolas, rotation_invariant)
        self.start = _check_start(start)

        def drawn(*shape: int, std: float) -> nn.Parameter:
            return nn.Parameter(std * torch.randn(num_heads, *shape, device=device, dtype=dtype))

        of_query = (self.parabolas, head_dim)
        self.curvature = drawn(*of_query, std=head_dim**-0.5)
        if rotation_invariant:
            filled = torch.full((num_heads,), self.start, device=device, dtype=dtype)
            self.strength = nn.Parameter(filled)
        else:
            self.slope = drawn(*of_query, std=head_dim**-0.5)
            self.directions = drawn(self.parabolas, 2, std=self.start)

    def changes_at_start(self) -> bool:
        """Unless it starts at zero."""
        return self.start != 0

    def terms(self, q: Tensor, k: Tensor, layout: TokenLayout, scale: float) -> tuple[Term, ...]:
        """One low-rank bias, whose right factor is the same for all queries and heads."""
        dtype = at_least_float32(self.curvature.dtype, q.dtype)
        grid = patch_coordinates(layout, q.device, dtype)  # [n, 2], centered
        form, gradient = self._quadratic_form(q[..., layout.prefix :, :].to(dtype))
        left, right = _left(grid, form, gradient), _right(grid)
        if layout.prefix:
            left, right = (pad(factor, (0, 0, layout.prefix, 0)) for factor in (left, right))
        else:
            left, right = left[..., 1:], right[..., 1:]  # what all keys get changes nothing
        return (LowRankBias(left, right[None, None], wide=True),)

    def _quadratic_form(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """F `[B, heads, n, 3]` (yy, yx, xx) and g `[B, heads, n, 2]` of `-d F d + g d`."""
        if self.rotation_invariant:
            weight = softplus(_read(q, self.curvature)) * self.strength.to(q.dtype)[:, None, None]
            none = torch.zeros_like(weight)
            return torch.cat([weight, none, weight], -1), torch.cat([none, none], -1)
        a, b = _read(q, torch.cat([self.curvature, self.slope], 1)).chunk(2, dim=-1)
        row, column = (w := self.directions.to(q.dtype)).unbind(-1)
        squares = torch.stack([row * row, row * column, column * column], -1)
        return softplus(a) @ squares, b @ w

    def extra_repr(self) -> str:
        """Options, as printed."""
        return f"parabolas={self.parabolas}, rotation_invariant={self.rotation_invariant}"


def _read(q: Tensor, weights: Tensor) -> Tensor:
    """`[B, heads, n, parabolas]`; `einsum` reads queries as they lie, `matmul` would copy them."""
    return torch.einsum("bhnd,hpd->bhnp", q, weights.to(q.dtype))


def _left(grid: Tensor, form: Tensor, gradient: Tensor) -> Tensor:
    """What a query at r contributes to `-(r - s) F (r - s) + g (r - s)`, for each part in s.

    The parts are those of `_right`: `[B, heads, n, 6]`.
    """
    y, x = grid.unbind(-1)
    yy, yx, xx = form.unbind(-1)
    turned = torch.stack([yy * y + yx * x, yx * y + xx * x], -1)  # F r
    constant = ((gradient - turned) * grid).sum(-1, keepdim=True)
    of_squares = torch.stack([-yy, -2 * yx, -xx], -1)
    return torch.cat([constant, 2 * turned - gradient, of_squares], -1)


def _right(grid: Tensor) -> Tensor:
    """Of a key at s = (y, x): `1, y, x, y y, y x, x x`, `[n, 6]`."""
    y, x = grid.unbind(-1)
    return torch.stack([torch.ones_like(y), y, x, y * y, y * x, x * x], -1)


def _check_parabolas(parabolas: int | None, rotation_invariant: bool) -> int:
    if rotation_invariant and parabolas is not None:
        raise ValueError(
            f"PaPE: rotation_invariant=True has one parabola, got parabolas={parabolas!r}; leave "
            "them out"
        )
    default = 1 if rotation_invariant else 8
    return default if parabolas is None else check_positive(parabolas, "parabolas", "PaPE")


def _check_start(start: float) -> float:
    if check_number(start, "start", "PaPE") < 0:
        raise ValueError(f"PaPE: start must be at least 0, got {start}: it is a spread")
    return float(start)
