"""How many dimensions a bias has."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from posenc.analysis.checks import check_floating
from posenc.encodings.base import is_finite
from posenc.functional.precision import at_least_float32


def effective_rank(bias: Tensor) -> Tensor:
    """The number of directions that a bias uses: a smooth rank.

    `r = exp(- sum_k p_k log p_k)` with `p_k = s_k / sum s` and s the singular values of the bias,
    each row minus its mean (a bias is defined up to a constant per query). It is k for k equal
    singular values, and 0 for a bias without effect.

    Args:
        bias: `[..., N, N]`, rows are queries, such as `captured.bias["blocks.0.attn"]`.

    Raises:
        ValueError: no square matrices, or values that are not finite.
        TypeError: no floating point tensor.

    Returns:
        `[...]`, in at least float32.

    Reference: Roy and Vetterli 2007, "The effective rank", EUSIPCO, section 2.

    >>> round(effective_rank(torch.eye(6)).item(), 4)  # the mean of each row took one direction
    5.0
    """
    _check(bias)
    values = bias.to(at_least_float32(bias.dtype))
    singular = torch.linalg.svdvals(values - values.mean(dim=-1, keepdim=True))
    # What rounding leaves of a row's constant is no direction.
    noise = torch.finfo(values.dtype).eps * values.shape[-1] * values.abs().amax(dim=(-2, -1))
    singular = singular.where(singular > noise[..., None], 0.0)
    total = singular.sum(dim=-1, keepdim=True)
    shares = singular / total.where(total > 0, 1.0)
    return torch.special.entr(shares).sum(dim=-1).exp().where(total[..., 0] > 0, 0.0)


def _check(bias: Any) -> None:
    check_floating(bias, "effective_rank: bias")
    if bias.dim() < 2 or bias.shape[-1] != bias.shape[-2]:
        raise ValueError(f"effective_rank: bias must be [..., N, N], got {list(bias.shape)}")
    if not is_finite(bias):
        raise ValueError(
            "effective_rank: bias has values that are not finite (pairs that a mask hides?): "
            "their rank is not defined"
        )
