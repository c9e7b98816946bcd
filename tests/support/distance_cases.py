"""Encodings of distance against loops over tokens: forward, and all gradients."""

import math

import oracles
import torch

from posenc import TokenLayout, attend

LAYOUTS = [(2, 5, 0), (4, 3, 1), (1, 6, 2), (3, 2, 5), (1, 1, 1)]
BACKENDS = ["reference", "sdpa", "tiled"]


def bias_of_distance(layout, function):
    """`[1, heads, N, N]` of `function(distance)`, `[heads]` each; 0 with a prefix token."""
    height, width, prefix = layout
    zero = torch.zeros_like(function(0.0))

    def entry(i, j):
        query, key = (oracles.position(token, width, prefix) for token in (i, j))
        if query is None or key is None:
            return zero[None]
        return function(math.hypot(query[0] - key[0], query[1] - key[1]))[None]

    return oracles.build_bias(height, width, prefix, entry)


def assert_equals_the_oracle(encoding, layout, function, backends=BACKENDS):
    """`encoding` on this layout is `function` of the distance."""
    heads = encoding.num_heads
    q, k, v, cotangent = oracles.random_qkv(oracles.num_tokens(*layout), heads=heads)
    expected_bias = bias_of_distance(layout, function)
    expected, _ = oracles.attention(q, k, v, expected_bias)
    leaves = [q, k, v, *encoding.parameters()]
    wanted = torch.autograd.grad(expected, leaves, cotangent, materialize_grads=True)
    for backend in backends:
        terms = encoding(q, k, TokenLayout(*layout))
        out = attend(q, k, v, terms, backend=backend)
        torch.testing.assert_close(out, expected, atol=1e-10, rtol=0)
        grads = torch.autograd.grad(out, leaves, cotangent, materialize_grads=True)
        for grad, want in zip(grads, wanted, strict=True):
            torch.testing.assert_close(grad, want, atol=1e-9, rtol=0)
