"""Attention calls with random numbers in everything: queries, tables, bucket numbers, masks."""

import math

import torch

from posenc.pairs import PairIndex
from posenc.terms import DenseBias, LookupBias, LowRankBias

KINDS = ["dense", "static", "query", "key", "low_rank", "all"]
MASKS = ["BHNN", "B1NN", "1HNN", "B11N", "B1N1", "HNN", "NN", "1N", "N1", "11"]
BATCH, HEADS, DIM, VALUE_DIM = 2, 3, 16, 20


def qkv(tokens, dtype=torch.float64, device="cpu"):
    shape = (BATCH, HEADS, tokens)
    return [
        torch.randn(*shape, width, dtype=torch.float64).to(device, dtype).requires_grad_()
        for width in (DIM, DIM, VALUE_DIM)
    ]


def random_index(layout):
    """Another bucket for each offset, in no order; the table is longer than the number of them."""
    size = (2 * layout.height - 1) * (2 * layout.width - 1)
    buckets = torch.randperm(size + 5)
    prefix = tuple(buckets[size : size + 3].tolist()) if layout.prefix else None
    grid = buckets[:size].view(2 * layout.height - 1, 2 * layout.width - 1)
    return PairIndex(layout, grid, size + 5, prefix)


def terms_of(kind, index, batch=BATCH, heads=HEADS, **options):
    """Terms of `kind` and their leaf tensors, shared by images or heads where these are 1."""
    tokens, buckets = index.layout.num_tokens, index.num_buckets

    def leaf(*shape):
        tensor = torch.randn(batch, heads, *shape, dtype=torch.float64)
        return tensor.to(**options).requires_grad_()

    build = {
        "dense": lambda: DenseBias(leaf(tokens, tokens)),
        "static": lambda: LookupBias(leaf(1, buckets), index),
        "query": lambda: LookupBias(leaf(tokens, buckets), index),
        "key": lambda: LookupBias(leaf(tokens, buckets), index.T, side="key"),
        "low_rank": lambda: LowRankBias(leaf(tokens, 3), leaf(tokens, 3)),
    }
    terms = [make() for name, make in build.items() if kind in (name, "all")]
    return terms, [tensor for term in terms for tensor in term.tensors().values()]


def mask_of(axes, tokens, boolean, dtype=torch.float64):
    """With a fully masked row wherever rows differ."""
    sizes = {"B": BATCH, "H": HEADS, "N": tokens, "1": 1}
    keep = torch.rand([sizes[axis] for axis in axes]) > 0.4
    if axes[-1] == "N":
        keep[..., 0] = True
    if axes[-2] == "N":
        keep[..., 0, :] = True
        keep[..., 2, :] = False
    if boolean:
        return keep
    return torch.randn(keep.shape, dtype=dtype).masked_fill(~keep, -math.inf).requires_grad_()
