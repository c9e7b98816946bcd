"""Low-rank factors as sums of two 16-bit halves."""

import pytest
import torch

from posenc.attention.kernels.factors import fold, unfold_left, unfold_right


@pytest.fixture(params=[1, 3, 5, 8])
def factors(request):
    rank = request.param
    torch.manual_seed(rank)
    return [torch.randn(1, 2, tokens, rank) * 10 for tokens in (7, 9)]


def largest(left, right):
    return left.double().abs() @ right.double().abs().transpose(-2, -1)


@pytest.mark.parametrize("scale", [0.125, -0.7])
def test_the_product_is_that_of_the_factors(factors, scale):
    left, right = factors
    folded_left, folded_right = fold(left, right, scale)
    assert folded_left.dtype == folded_right.dtype == torch.bfloat16
    assert folded_left.shape[-1] % 16 == 0
    product = folded_left.double() @ folded_right.double().transpose(-2, -1) * scale
    error = (product - left.double() @ right.double().transpose(-2, -1)).abs()
    assert (error <= 2**-15 * largest(left, right)).all()
    assert error.max() > 0


@pytest.mark.parametrize("scale", [0.125, -0.7])
def test_gradients(factors, scale):
    left, right = factors
    rank, folded_left, folded_right = left.shape[-1], *fold(left, right, scale)
    ds = torch.randn(1, 2, 7, 9)
    of_left = unfold_left(ds.double() @ folded_right.double(), rank)
    error = (of_left - ds.double() @ right.double()).abs()
    assert (error <= 2**-15 * ds.double().abs() @ right.double().abs()).all()
    back = ds.double().transpose(-2, -1)
    of_right = unfold_right(back @ folded_left.double(), rank, scale)
    error = (of_right - back @ left.double()).abs()
    assert (error <= 2**-15 * back.abs() @ left.double().abs()).all()
