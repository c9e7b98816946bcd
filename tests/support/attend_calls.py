"""Calls of `attend` with random terms, and biases by loops."""

import oracles
import torch

from posenc import TokenLayout
from posenc.functional.buckets import swin_index
from posenc.terms import DenseBias, LookupBias, LowRankBias, ValueLookup

BACKENDS = ["reference", "sdpa"]
WITH_TERMS = [*BACKENDS, "tiled"]
LAYOUTS = [(2, 5, 0), (3, 3, 1), (1, 6, 2), (3, 2, 5), (5, 1, 1)]
BIASES = ["dense", "static", "query", "key", "low_rank", "all"]
HEADS, DIM = 2, 6


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def qkv(tokens, value_dim=DIM, dtype=torch.float64, seed=0):
    q, k = (random(2, HEADS, tokens, DIM, seed=seed + i).to(dtype) for i in (1, 2))
    return [
        x.requires_grad_() for x in (q, k, random(2, HEADS, tokens, value_dim, seed=3).to(dtype))
    ]


def tensors(kind, tokens, buckets, value_dim=DIM):
    """The leaf tensors of the terms of `kind`, batched or broadcast, shared or per head."""
    shapes = {
        "dense": [(2, 1, tokens, tokens)],
        "static": [(1, HEADS, 1, buckets)],
        "query": [(2, HEADS, tokens, buckets)],
        "key": [(2, 1, tokens, buckets)],
        "low_rank": [(1, HEADS, tokens, 3), (2, 1, tokens, 3)],
        "value": [(HEADS, buckets, value_dim)],
    }
    shapes["all"] = [shape for name in BIASES[:-1] for shape in shapes[name]]
    return [random(*shape, seed=9 + i).requires_grad_() for i, shape in enumerate(shapes[kind])]


def terms_of(kind, leaves, index):
    build = {
        "dense": lambda x: DenseBias(x),
        "static": lambda x: LookupBias(x, index),
        "query": lambda x: LookupBias(x, index),
        "key": lambda x: LookupBias(x, index.T, side="key"),
        "low_rank": lambda left, right: LowRankBias(left, right),
        "value": lambda x: ValueLookup(x, index),
    }
    if kind != "all":
        return [build[kind](*leaves)]
    a, b, c, d, left, right = leaves
    return [
        build["dense"](a),
        build["static"](b),
        build["query"](c),
        build["key"](d),
        build["low_rank"](left, right),
    ]


def swin_bucket(layout):
    return lambda i, j: oracles.swin_bucket(i, j, *layout, "separate")


def loop_bias(kind, leaves, layout):
    """`[2, HEADS, N, N]`, pair by pair."""
    if kind == "all":
        parts = [loop_bias(k, [x], layout) for k, x in zip(BIASES[:4], leaves[:4], strict=True)]
        return sum(parts) + loop_bias("low_rank", leaves[4:], layout)
    bucket = swin_bucket(layout)
    entries = {
        "dense": lambda i, j: leaves[0][..., i, j],
        "static": lambda i, j: leaves[0][..., 0, bucket(i, j)],
        "query": lambda i, j: leaves[0][..., i, bucket(i, j)],
        "key": lambda i, j: leaves[0][..., j, bucket(j, i)],
        "low_rank": lambda i, j: (leaves[0][..., i, :] * leaves[1][..., j, :]).sum(-1),
    }
    return oracles.build_bias(*layout, lambda i, j: entries[kind](i, j).expand(2, HEADS))


def index_of(layout):
    return swin_index(TokenLayout(*layout), "separate")


def assert_same(actual, expected, leaves, tolerance=1e-12):
    """Outputs and the gradients of all leaves."""
    cotangent = random(*expected.shape, seed=77)
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
    ours = torch.autograd.grad(actual, leaves, cotangent)
    theirs = torch.autograd.grad(expected, leaves, cotangent)
    for one, other in zip(ours, theirs, strict=True):
        assert other.abs().max() > 1e-3
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


# 16 bits


def worst(actual, expected):
    return (actual.double() - expected).abs().max().item()
