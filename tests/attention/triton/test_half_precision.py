"""16 bits in the fused kernels."""

import pytest
import torch
from kernel_calls import (
    DEVICE,
    HEADS,
    VALUE_KINDS,
    assert_equal_to_reference,
    gradients,
    numbers,
    qkv,
    random_terms,
)

from posenc import attend
from posenc.attention.call import AttentionCall
from posenc.terms import LowRankBias

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", VALUE_KINDS)
def test_16_bits(kind, dtype):
    """Rounded factors: a few eps of the largest entry."""
    terms, leaves = random_terms(kind, (7, 5, 1))
    inputs = qkv(36, dtype=dtype)
    assert_equal_to_reference(inputs, terms, leaves, tolerance=8 * torch.finfo(dtype).eps)


def gradient_of_alpha(backend, precision, dtype):
    """Squared distances between rows as factors, inputs rounded to `dtype`."""
    torch.manual_seed(1)
    y = torch.arange(81, device=DEVICE) // 9 - 4.0
    alpha = torch.tensor(6.0, device=DEVICE, requires_grad=True)
    left = torch.stack([2 * y, -torch.ones_like(y)], -1)[None, None]
    right = alpha * torch.stack([y, y * y], -1)[None, None]
    inputs = [x.to(precision) for x in qkv(81, dtype=dtype)]
    out = attend(*inputs, LowRankBias(left, right, wide=True), backend=backend)
    return gradients(out, [alpha])[0].double()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_wide_factors_train_in_16_bits(dtype, monkeypatch):
    """`lowrank` refuses to."""
    exact = gradient_of_alpha("reference", torch.float64, dtype)
    assert abs(gradient_of_alpha("triton", dtype, dtype) / exact - 1) < 4 * torch.finfo(dtype).eps
    monkeypatch.setattr(AttentionCall, "is_wide", False)
    with_rounded_weights = gradient_of_alpha("triton", dtype, dtype)
    assert abs(with_rounded_weights / exact - 1) > 20 * torch.finfo(dtype).eps


def test_wide_factors_and_value_tables_train_in_16_bits():
    layout = (5, 4, 1)
    (table,), leaves = random_terms("value", layout)[0][:1], []
    left, right = (numbers(1, HEADS, 21, 3) for _ in range(2))
    terms, leaves = [table, LowRankBias(left, right, wide=True)], [table.table, left, right]
    eps = torch.finfo(torch.float16).eps
    assert_equal_to_reference(qkv(21, dtype=torch.float16), terms, leaves, tolerance=8 * eps)
