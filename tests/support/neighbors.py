"""Checks of encodings that add a depthwise convolution: a loop over tokens says what it is."""

from __future__ import annotations

import oracles
import torch

from posenc import TokenLayout

DIM = 4


def tokens(layout, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (2, oracles.num_tokens(*layout), DIM)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def build(cls, layout, **options):
    return oracles.randomize(cls(TokenLayout(*layout), DIM, dtype=torch.float64, **options))


def by_loop(encoding, x, layout):
    """Independent of `conv2d`."""
    return oracles.peg(x, encoding.weight, encoding.bias, *layout)


def check_equals_the_loop(encoding, layout):
    """Forward and all gradients."""
    x, cotangent = tokens(layout).requires_grad_(), tokens(layout, seed=1)
    out, expected = encoding(x, TokenLayout(*layout)), by_loop(encoding, x, layout)
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=0)
    leaves = [x, encoding.weight, encoding.bias]
    wanted = torch.autograd.grad(expected, leaves, cotangent)
    for grad, want in zip(torch.autograd.grad(out, leaves, cotangent), wanted, strict=True):
        torch.testing.assert_close(grad, want, atol=1e-12, rtol=0)


def check_the_grid_of_the_call_counts(encoding):
    """2x5 and 5x2 have the same number of tokens; no parameter changes."""
    x = tokens((5, 2, 1))
    out = encoding(x, TokenLayout(5, 2, prefix=1))
    torch.testing.assert_close(out, by_loop(encoding, x, (5, 2, 1)), atol=1e-12, rtol=0)
    assert (out - encoding(x, TokenLayout(2, 5, prefix=1))).abs().max() > 0.1


def check_prefix_tokens_pass_by(encoding):
    """Nothing reaches them, and nothing comes from them."""
    layout, x = TokenLayout(2, 5, prefix=3), tokens((2, 5, 3))
    out = encoding(x, layout)
    assert torch.equal(out[:, :3], x[:, :3])
    x = torch.cat([torch.full_like(x[:, :3], torch.nan), x[:, 3:]], 1)
    assert torch.equal(encoding(x, layout)[:, 3:], out[:, 3:])


def check_start(encoding):
    """The identity, and gradients that lead away from it."""
    layout, x = (2, 5, 1), tokens((2, 5, 1))
    out = encoding(x, TokenLayout(*layout))
    assert torch.equal(out, x)
    out.backward(x)
    assert all((gradient != 0).all() for gradient in (encoding.weight.grad, encoding.bias.grad))
