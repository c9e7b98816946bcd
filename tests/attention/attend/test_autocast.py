"""Autocast around `attend`."""

import oracles
import pytest
import torch
import torch.nn.functional as F
from attend_calls import HEADS, WITH_TERMS, index_of, loop_bias, qkv, random, worst

from posenc import attend
from posenc.terms import DenseBias, LookupBias


@pytest.mark.parametrize("dtypes", ["fff", "bbb", "ffb"])
def test_autocast_without_terms_is_sdpa(dtypes):
    """ "ffb": queries and keys that a norm left in float32."""
    kinds = {"f": torch.float32, "b": torch.bfloat16}
    q, k, v = (x.detach().to(kinds[d]) for x, d in zip(qkv(9), dtypes, strict=True))
    with torch.autocast("cpu", torch.bfloat16):
        out = attend(q, k, v)
        expected = F.scaled_dot_product_attention(q, k, v)
    assert out.dtype == expected.dtype == torch.bfloat16
    assert torch.equal(out, expected)


@pytest.mark.parametrize("backend", WITH_TERMS)
@pytest.mark.parametrize("dtypes", ["fff", "bbb", "ffb"])
def test_autocast_with_terms(backend, dtypes):
    kinds = {"f": torch.float32, "b": torch.bfloat16}
    index = index_of((2, 4, 1))
    q, k, v = (x.detach().to(kinds[d]) for x, d in zip(qkv(9), dtypes, strict=True))
    lookup = random(1, HEADS, 1, index.num_buckets).float()
    bias = loop_bias("static", [lookup.double()], (2, 4, 1))
    exact, _ = oracles.attention(q.double(), k.double(), v.double(), bias)
    with torch.autocast("cpu", torch.bfloat16):
        out = attend(q, k, v, LookupBias(lookup, index), backend=backend)
        mask = LookupBias(lookup, index).dense().to(torch.bfloat16)
        sdpa = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    assert out.dtype == sdpa.dtype == torch.bfloat16
    assert worst(out, exact) <= 1.5 * worst(sdpa, exact)


def test_autocast_leaves_float64():
    q, k, v = (x.detach() for x in qkv(5))
    with torch.autocast("cpu", torch.bfloat16):
        out = attend(q, k, v, DenseBias(random(1, 1, 5, 5)))
        expected = F.scaled_dot_product_attention(q, k, v, attn_mask=random(1, 1, 5, 5))
    assert out.dtype == expected.dtype == torch.float64
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


def test_autocast_does_not_touch_gradients_of_terms():
    bias = random(1, HEADS, 5, 5).float().requires_grad_()
    q, k, v = (x.detach().float() for x in qkv(5))
    with torch.autocast("cpu", torch.bfloat16):
        attend(q, k, v, DenseBias(bias)).sum().backward()
    assert bias.grad.dtype == torch.float32
    assert bias.grad.any()
