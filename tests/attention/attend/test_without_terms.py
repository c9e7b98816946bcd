"""Without terms `attend` is SDPA."""

import pytest
import torch
import torch.nn.functional as F
from attend_calls import BACKENDS, qkv, random

from posenc import attend


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("head_dim", [6, 7, 32, 48, 64])
@pytest.mark.parametrize(
    "options",
    [{}, {"scale": 0.2}, {"is_causal": True}, {"attn_mask": torch.ones(5, 5).tril().bool()}],
    ids=["plain", "scale", "causal", "mask"],
)
def test_without_terms_is_sdpa_bit_for_bit(dtype, head_dim, options):
    q, k, v = (random(2, 3, 5, head_dim, seed=i).to(dtype) for i in range(3))
    expected = F.scaled_dot_product_attention(q, k, v, **options)
    assert torch.equal(attend(q, k, v, **options), expected)
    assert torch.equal(attend(q, k, v, (), backend="sdpa", **options), expected)


def test_without_terms_gradients_and_dropout_are_those_of_sdpa():
    q, k, v = qkv(5, dtype=torch.float32)
    torch.manual_seed(0)
    ours = attend(q, k, v, dropout_p=0.4)
    torch.manual_seed(0)
    theirs = F.scaled_dot_product_attention(q, k, v, dropout_p=0.4)
    assert torch.equal(ours, theirs)
    for one, other in zip(
        torch.autograd.grad(ours.sum(), [q, k, v]),
        torch.autograd.grad(theirs.sum(), [q, k, v]),
        strict=True,
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", [{}, {"is_causal": True}])
def test_grouped_queries_without_terms_equal_sdpa(backend, options):
    q = random(2, 6, 5, 4)
    k, v = random(2, 3, 5, 4, seed=1), random(2, 3, 5, 8, seed=2)
    expected = F.scaled_dot_product_attention(q, k, v, enable_gqa=True, **options)
    out = attend(q, k, v, enable_gqa=True, backend=backend, **options)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("causal", [False, True])
def test_cross_attention_without_terms_equals_sdpa(backend, causal):
    q, k, v = random(2, 3, 4, 6), random(2, 3, 7, 6, seed=1), random(2, 3, 7, 6, seed=2)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    out = attend(q, k, v, is_causal=causal, backend=backend)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
