"""Masks in the fused kernels."""

import pytest
import torch
import torch.nn.functional as F
from kernel_calls import (
    DEVICE,
    HEADS,
    assert_equal_to_reference,
    gradients,
    numbers,
    qkv,
    random_terms,
    set_tiles,
)
from random_calls import MASKS, mask_of

from posenc import attend
from posenc.terms import DenseBias


@pytest.mark.slow
@pytest.mark.parametrize("axes", MASKS)
@pytest.mark.parametrize("boolean", [True, False])
@pytest.mark.parametrize("kind", [None, "static", "value and all"])
def test_masks(kind, axes, boolean):
    terms, leaves = random_terms(kind, (2, 3, 1)) if kind else ([], [])
    mask = mask_of(axes, 7, boolean, torch.float32).detach().to(DEVICE)
    out = assert_equal_to_reference(qkv(7), terms, leaves, attn_mask=mask, scale=0.7)
    if axes[-2] == "N":
        assert not out[:, :, 2].any()
        assert out[:, :, 0].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_mask_of_another_dtype(dtype):
    mask = torch.randn(7, 7).to(DEVICE, dtype)
    assert_equal_to_reference(qkv(7), *random_terms("static", (2, 3, 1)), attn_mask=mask)


@pytest.mark.slow
@pytest.mark.parametrize("tiles", [(16, 32), (32, 16)])
@pytest.mark.parametrize("sizes", [(40, 40), (20, 50), (50, 20)])
@pytest.mark.parametrize("causal", [False, True])
def test_without_terms(sizes, causal, tiles, monkeypatch):
    """Cross attention and causal attention as in SDPA."""
    set_tiles(monkeypatch, *tiles)
    queries, keys = sizes
    q, k, v = numbers(2, 3, queries, 16), numbers(2, 3, keys, 16), numbers(2, 3, keys, 24)
    out = attend(q, k, v, is_causal=causal, backend="triton")
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    expected = F.scaled_dot_product_attention(*exact, is_causal=causal)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    for got, want in zip(gradients(out, (q, k, v)), gradients(expected, exact), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


def test_a_dense_bias_and_a_mask_together():
    terms, leaves = random_terms("all", (2, 3, 1))
    dense = [DenseBias(torch.randn(1, HEADS, 7, 7, device=DEVICE)) for _ in range(2)]
    mask = torch.randn(7, 7, device=DEVICE)
    assert_equal_to_reference(qkv(7), [*terms, *dense], leaves, attn_mask=mask)
    keep = mask > 0
    keep[:, 0] = True
    assert_equal_to_reference(qkv(7), [*terms, *dense], leaves, attn_mask=keep)
