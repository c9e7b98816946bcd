"""Dropout in the fused kernels."""

import math

import pytest
import torch
from kernel_calls import (
    BATCH,
    DEVICE,
    EPS,
    HEADS,
    gradients,
    in_float64,
    numbers,
    qkv,
    random_terms,
    set_tiles,
)

from posenc import attend
from posenc.terms import ValueLookup


def dropout_factors(tokens, p, seed, **options):
    """Of uniform attention, with the identity as values."""
    zeros = torch.zeros(BATCH, HEADS, tokens, 16, device=DEVICE)
    identity = torch.eye(tokens, device=DEVICE).expand(BATCH, HEADS, -1, -1)
    torch.manual_seed(seed)
    out = attend(zeros, zeros, identity, dropout_p=p, backend="triton", **options)
    return out * tokens


def test_dropout_statistics():
    p = 0.3
    factors = dropout_factors(64, p, seed=0)
    count = factors.numel()
    kept = factors > 0.5
    torch.testing.assert_close(factors[kept], torch.full_like(factors[kept], 1 / (1 - p)))
    deviation = math.sqrt(p * (1 - p) / count)
    assert abs(kept.double().mean() - (1 - p)) < 4 * deviation
    pairs = kept.flatten(0, 1).double().flatten(1) - (1 - p)
    assert (pairs @ pairs.T / pairs.shape[1]).fill_diagonal_(0).abs().max() < 4 * deviation * 3
    assert not torch.equal(kept[..., 0], kept[..., 1])


def test_dropout_repeats_with_the_seed(monkeypatch):
    one = dropout_factors(20, 0.4, seed=1)
    assert not torch.equal(one, dropout_factors(20, 0.4, seed=2))
    if DEVICE == "cpu":
        set_tiles(monkeypatch, 32, 16)  # it does not depend on the tiles
    torch.testing.assert_close(one, dropout_factors(20, 0.4, seed=1))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["static", "value and all"])
def test_dropout_drops_the_same_in_backward(kind):
    layout, p = (5, 4, 1), 0.4
    terms, leaves = random_terms(kind, layout)
    exact_terms, exact_leaves, exact = in_float64(terms, leaves, inputs := qkv(21))
    factors = dropout_factors(21, p, seed=3).double()
    factors = (factors > 0.5) / (1 - p)  # without rounding
    torch.manual_seed(3)
    out = attend(*inputs, terms, dropout_p=p, backend="triton")
    q, k, v = exact
    scores = q @ k.transpose(-2, -1) * 16**-0.5
    biases = [term.dense() for term in exact_terms if not isinstance(term, ValueLookup)]
    attention = (scores + sum(biases)).softmax(-1) * factors
    expected = attention @ v
    for term in exact_terms:
        if isinstance(term, ValueLookup):
            expected = expected + term.apply(attention)
    ours = [out, *gradients(out, [*inputs, *leaves])]
    theirs = [expected, *gradients(expected, [*exact, *exact_leaves])]
    for got, want in zip(ours, theirs, strict=True):
        assert (got - want).abs().max() <= 128 * EPS * want.abs().max().clamp(min=1)


def test_dropout_of_more_keys_than_queries():
    """Backward, by keys, drops what forward dropped by queries."""
    q, k = numbers(BATCH, HEADS, 20, 16), numbers(BATCH, HEADS, 50, 16)
    v = torch.eye(50, device=DEVICE).expand(BATCH, HEADS, -1, -1).clone().requires_grad_()
    out = attend(q, k, v, dropout_p=0.4, backend="triton")  # the weights themselves
    kept = out > 0
    same = (kept[:, :, :-1, 20:] == kept[:, :, 1:, :-20]).double().mean()
    assert abs(same - (0.4**2 + 0.6**2)) < 0.1  # no two pairs share a number
    cotangent = torch.randn_like(out)
    (grad,) = torch.autograd.grad(out, v, cotangent)
    torch.testing.assert_close(grad, out.detach().transpose(-2, -1) @ cotangent)


def test_no_dropout_uses_no_random_numbers():
    terms, _ = random_terms("static", (2, 3, 1))
    inputs = qkv(7)
    before = torch.get_rng_state()
    attend(*inputs, terms, backend="triton")
    assert torch.equal(torch.get_rng_state(), before)
