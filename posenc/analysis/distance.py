"""How far attention heads look."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from posenc.analysis.checks import check_pairs
from posenc.functional.coordinates import patch_coordinates
from posenc.functional.precision import at_least_float32
from posenc.layout import TokenLayout


def mean_attention_distance(
    attention: Tensor,
    layout: TokenLayout,
    *,
    patch_size: float | tuple[float, float] = 1.0,
    renormalize: bool = True,
) -> Tensor:
    """The mean distance between a query patch and the patches that it attends to.

    `d = mean_i sum_j A_ij |p_i - p_j| / sum_j A_ij` over pairs of patches, with `p` the centers;
    rows and columns of prefix tokens are left out. Without `renormalize` nothing is divided: what
    a patch gives to prefix tokens then shortens its distance, as in the published code
    (github.com/sayakpaul/probing-vits).

    Args:
        attention: weights `[B, heads, N, N]`, such as `captured.attention["blocks.0.attn"]`.
        layout: of the tokens.
        patch_size: of a patch, one number or (height, width): the unit of the result. 1 counts
            in patches, 16 gives the pixels of a model with patches of 16 pixels.
        renormalize: divide each row by what it gives to patches. A row that gives them nothing is
            then left out of the mean; a head without any other row has the distance nan.

    Raises:
        ValueError: a shape that does not fit the layout, or a patch size that is not positive.
        TypeError: something that is no floating point tensor.

    Returns:
        `[B, heads]`, in at least float32.

    Reference: Dosovitskiy et al. 2021, arXiv 2010.11929, figure 7; Raghu et al. 2021, arXiv
    2108.08810, section 4.

    >>> one_step_right = torch.zeros(1, 1, 6, 6)
    >>> one_step_right[..., [0, 1, 3, 4], [1, 2, 4, 5]] = 1.0
    >>> one_step_right[..., [2, 5], [2, 5]] = 1.0  # the last column stays
    >>> mean_attention_distance(one_step_right, TokenLayout(2, 3), patch_size=(8, 3))
    tensor([[2.]])
    """
    check_pairs(attention, layout, "mean_attention_distance: attention", dims=4)
    size = _pair(patch_size)
    pairs = attention[..., layout.prefix :, layout.prefix :]
    pairs = pairs.to(at_least_float32(attention.dtype))
    weighted = (pairs * _distances(layout, size, like=pairs)).sum(dim=-1)
    if not renormalize:
        return weighted.mean(dim=-1)
    return (weighted / pairs.sum(dim=-1)).nanmean(dim=-1)  # 0 / 0 where nothing is given


def _distances(layout: TokenLayout, size: tuple[float, float], like: Tensor) -> Tensor:
    """`[num_grid, num_grid]` between the centers of patches of this size."""
    y, x = (patch_coordinates(layout, like.device, like.dtype) * like.new_tensor(size)).T
    return torch.hypot(y[:, None] - y, x[:, None] - x)


def _pair(patch_size: float | tuple[float, float]) -> tuple[float, float]:
    sides = patch_size if isinstance(patch_size, tuple | list) else (patch_size, patch_size)
    try:
        height, width = map(float, sides)
    except (TypeError, ValueError):
        height = width = math.nan
    if not (0 < height < math.inf and 0 < width < math.inf):
        raise ValueError(
            "mean_attention_distance: patch_size must be a positive number or (height, width), "
            f"got {patch_size!r}"
        )
    return height, width
