"""How alike two representations of the same things are."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from posenc.analysis.checks import check_floating
from posenc.encodings.base import is_finite
from posenc.functional.precision import at_least_float32


def linear_cka(x: Tensor, y: Tensor) -> Tensor:
    """Centered kernel alignment of two representations, with linear kernels, debiased.

    `cka = hsic(K, L) / sqrt(hsic(K, K) hsic(L, L))` with `K = x x^T` and `L = y y^T`, their
    diagonals set to 0, and the unbiased `hsic(K, L) = [tr(K L) + (1^T K 1)(1^T L 1) / ((n - 1)
    (n - 2)) - 2 / (n - 2) 1^T K L 1] / (n (n - 3))`. 1 for representations that a rotation, a
    shift and a scale make equal, 0 in the mean for independent ones (plain CKA is near 1 there
    when channels outnumber samples); estimates lie around it, also below. nan where a
    representation does not vary.

    Args:
        x: `[n, C]`, one row a sample: the mean or flattened tokens of an image, or all tokens
            `tokens.flatten(0, 1)` of one block.
        y: `[n, D]` of the same samples in the same order, such as another block's or model's.

    Raises:
        ValueError: other shapes, fewer than 4 samples, or values that are not finite.
        TypeError: no floating point tensors.

    Returns:
        One number `[]`, in at least float32.

    Reference: Kornblith et al. 2019, arXiv 1905.00414; Song et al. 2012, JMLR 13, equation 5
    (unbiased HSIC); Raghu et al. 2021, arXiv 2108.08810, section 3, for vision transformers.

    >>> import torch
    >>> x = torch.randn(10, 3)
    >>> turned = 2 * x @ torch.linalg.qr(torch.randn(3, 3)).Q + 1
    >>> round(linear_cka(x, turned).item(), 4)
    1.0
    """
    for name, each in (("x", x), ("y", y)):
        _check(each, name)
    if len(x) != len(y) or len(x) < 4:
        raise ValueError(
            f"linear_cka: x and y must have the same samples, 4 at least, got {len(x)} and {len(y)}"
        )
    dtype = at_least_float32(x.dtype, y.dtype)
    of_x, of_y = (_pairs(each.to(dtype)) for each in (x, y))
    return _hsic(of_x, of_y) / (_hsic(of_x, of_x) * _hsic(of_y, of_y)).sqrt()


def _pairs(x: Tensor) -> Tensor:
    # HSIC does not see a shift of all samples, but rounding does.
    x = x - x.mean(dim=0)
    return (x @ x.T).fill_diagonal_(0.0)


def _hsic(one: Tensor, other: Tensor) -> Tensor:
    n = len(one)
    together = one.sum() * other.sum() / ((n - 1) * (n - 2))
    across = one.sum(dim=0) @ other.sum(dim=0) * 2 / (n - 2)
    return ((one * other).sum() + together - across) / (n * (n - 3))


def _check(x: Any, name: str) -> None:
    check_floating(x, f"linear_cka: {name}")
    if x.dim() != 2:
        raise ValueError(f"linear_cka: {name} must be [n, C], got {list(x.shape)}")
    if not is_finite(x):
        raise ValueError(f"linear_cka: {name} has values that are not finite")
