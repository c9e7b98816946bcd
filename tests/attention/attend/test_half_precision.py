"""16 bits against a plain reference and against float64."""

import oracles
import pytest
import torch
import torch.nn.functional as F
from attend_calls import (
    DIM,
    HEADS,
    WITH_TERMS,
    index_of,
    loop_bias,
    qkv,
    random,
    tensors,
    terms_of,
    worst,
)

from posenc import attend
from posenc.terms import DenseBias


def low_precision_reference(q, k, v, bias):
    """Scores and softmax in float32, inputs and output rounded to 16 bits: the best one can do."""
    scores = q.float() @ k.float().transpose(-2, -1) / q.shape[-1] ** 0.5 + bias
    return (scores.softmax(-1).to(q.dtype).float() @ v.float()).to(q.dtype)


@pytest.mark.parametrize("backend", WITH_TERMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["dense", "static", "query", "low_rank"])
def test_16_bit_error_is_that_of_a_plain_reference(backend, dtype, kind):
    index = index_of((3, 5, 1))
    q, k, v = (x.detach() for x in qkv(16, dtype=dtype))
    leaves = [x.detach().float() for x in tensors(kind, 16, index.num_buckets)]
    terms = terms_of(kind, leaves, index)
    bias = loop_bias(kind, [x.double() for x in leaves], (3, 5, 1))
    exact, _ = oracles.attention(q.double(), k.double(), v.double(), bias)
    floor = worst(low_precision_reference(q, k, v, bias.float()), exact)
    out = attend(q, k, v, terms, backend=backend)
    assert out.dtype == dtype
    # A 16-bit mask rounds a bias of up to 4 by eps * 2: as much again as the plain reference.
    bound = 2 * floor + (4 * torch.finfo(dtype).eps if backend == "sdpa" else 0)
    assert worst(out, exact) <= bound


@pytest.mark.parametrize("backend", WITH_TERMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("masked", [False, True])
def test_a_row_offset_costs_no_precision(backend, dtype, masked):
    """Softmax does not see it, but 30 leaves bfloat16 a step of 1/8, unless rows are shifted."""
    q, k, v = (x.detach() for x in qkv(16, dtype=dtype))
    bias = random(1, HEADS, 16, 16, seed=8).float()
    mask = (random(16, 16, seed=9) > -1) | torch.eye(16).bool() if masked else None
    exact, _ = oracles.attention(q.double(), k.double(), v.double(), bias.double(), mask)
    shifted = DenseBias(bias + 30)
    plain = worst(attend(q, k, v, DenseBias(bias), attn_mask=mask, backend=backend), exact)
    error = worst(attend(q, k, v, shifted, attn_mask=mask, backend=backend), exact)
    assert error <= 2 * plain + 1e-4
    naive = F.scaled_dot_product_attention(q, k, v, attn_mask=(bias + 30).to(dtype))
    if not masked and dtype == torch.bfloat16:
        assert worst(naive, exact) > 3 * error


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_gradients_follow_float64(dtype):
    index = index_of((2, 5, 1))
    for kind in ("static", "query"):
        leaves = [x.detach().float().requires_grad_() for x in tensors(kind, 11, index.num_buckets)]
        exact = [x.detach().double().requires_grad_() for x in leaves]
        q, k, v = qkv(11, dtype=dtype)
        q64, k64, v64 = (x.detach().double().requires_grad_() for x in (q, k, v))
        cotangent = random(2, HEADS, 11, DIM, seed=5)
        expected = torch.autograd.grad(
            attend(q64, k64, v64, terms_of(kind, exact, index), backend="reference"),
            [q64, k64, v64, *exact],
            cotangent,
        )
        for backend in WITH_TERMS:
            out = attend(q, k, v, terms_of(kind, leaves, index), backend=backend)
            grads = torch.autograd.grad(out, [q, k, v, *leaves], cotangent.to(dtype))
            for grad, true in zip(grads, expected, strict=True):
                # Rounded factors: a few eps of the largest entry.
                assert worst(grad, true) <= 8 * torch.finfo(dtype).eps * true.abs().max()
