"""Forward, in Triton: online softmax over tiles of keys (FlashAttention, arXiv 2205.14135)."""

from __future__ import annotations

import triton
import triton.language as tl

from posenc.attention.kernels.slots import own_slots, pair_slots
from posenc.attention.kernels.tiles import (
    add_to_lookup,
    dropout_tile,
    exponent_unit,
    load_factors,
    load_rows,
    of_queries,
    own_tile,
    score_tile,
    store_rows,
    tokens_at,
    walked,
    whole_tiles,
)


@triton.jit
def forward(call, out, lse, sums, value_starts, unit, shape):
    """One tile of queries against all keys.

    Writes out `[B, heads, N, Dv]` and lse `[B, heads, N]`, the logarithm to base 2 of the sum of
    the exponentials of a row: infinity where all keys are masked, so that every weight is
    `exp2(score - lse)`. With value terms, adds the weights to sums `[B, heads, T, N]`.
    """
    tile, image, head = own_tile(tl.cdiv(call.queries, shape.ROWS), call.heads)
    i = tile * shape.ROWS + tl.arange(0, shape.ROWS)
    queries = tokens_at(i, call.prefix, call.queries)
    is_prefix = i >= call.queries - call.prefix
    own = own_slots(i, is_prefix, call, shape)
    q = load_rows(call.query, image, head, queries, shape.HEAD_DIM, shape.HEAD_BLOCK)
    left = load_factors(call.left, image, head, queries, shape)
    largest = tl.full([shape.ROWS], float("-inf"), tl.float32)
    total = tl.zeros([shape.ROWS], tl.float32)
    result = tl.zeros([shape.ROWS, shape.VALUE_BLOCK], tl.float32)
    whole, stop = walk_of_keys(tile, call, shape)
    for start in range(0, whole, shape.COLUMNS):
        largest, total, result = add_keys(
            largest, total, result, q, left, call, shape, image, head, i, queries, own, is_prefix,
            start, False, shape.COLUMNS,
        )  # fmt: skip
    for start in tl.range(whole, stop, shape.EDGE, num_stages=1):
        largest, total, result = add_keys(
            largest, total, result, q, left, call, shape, image, head, i, queries, own, is_prefix,
            start, True, shape.EDGE,
        )  # fmt: skip
    is_empty = total == 0
    total = tl.where(is_empty, 1.0, total)
    normalizer = largest * exponent_unit(call, shape) + tl.log2(total)
    normalizer = tl.where(is_empty, float("inf"), normalizer)
    result = result / total[:, None]
    inside = i < call.queries
    store_rows(out, image, head, queries, inside, result, shape.VALUE_DIM, shape.VALUE_BLOCK)
    tl.store(lse + (image * call.heads + head) * call.queries + queries, normalizer, mask=inside)
    if sums is not None:
        # Queries behind the last are the last again: their weights must be nothing.
        normalizer = tl.where(inside, normalizer, float("inf"))
        for start in range(0, whole, shape.COLUMNS):
            sum_weights(
                normalizer, q, left, call, shape, image, head, i, queries, own, is_prefix,
                start, sums, value_starts, unit, False, shape.COLUMNS,
            )  # fmt: skip
        for start in tl.range(whole, stop, shape.EDGE, num_stages=1):
            sum_weights(
                normalizer, q, left, call, shape, image, head, i, queries, own, is_prefix,
                start, sums, value_starts, unit, True, shape.EDGE,
            )  # fmt: skip


@triton.jit
def walk_of_keys(tile, call, shape):
    """Where the main loop of a tile of queries ends, and where the last one does."""
    whole = whole_tiles(call.keys, call.prefix, shape.COLUMNS)
    stop = call.keys
    if shape.CAUSAL:  # in the main loop, only what all queries of the tile see
        whole = tl.minimum(whole, tile * shape.ROWS // shape.COLUMNS * shape.COLUMNS)
        stop = tl.minimum(stop, (tile + 1) * shape.ROWS)
    return whole, stop


@triton.jit
def add_keys(
    largest, total, result, q, left, call, shape, image, head, i, queries, own, is_prefix,
    start, EDGE: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Softmax while the keys pass by."""
    j, keys = walked(start, call.prefix, call.keys, EDGE, SIZE)
    slots = pair_slots(own, is_prefix, j, call.keys, call, shape, EDGE)
    k = load_rows(call.key, image, head, keys, shape.HEAD_DIM, shape.HEAD_BLOCK)
    right = load_factors(call.right, image, head, keys, shape)
    s = score_tile(
        q, k, left, right, call, shape, image, head, i, j, queries, keys, slots, False, EDGE
    )
    # What was summed so far is scaled down whenever a larger score appears, so that no exponential
    # overflows and no row of scores is kept.
    factor = exponent_unit(call, shape)
    highest = tl.maximum(largest, tl.max(s, 1))
    shift = tl.where(highest == float("-inf"), 0.0, highest) * factor  # else inf - inf
    weights = tl.exp2(s * factor - shift[:, None])
    rescale = tl.exp2(largest * factor - shift)
    total = total * rescale + tl.sum(weights, 1)
    # After `total`: dropout drops weights of the softmax, it does not change the softmax.
    if call.seed is not None:
        weights *= dropout_tile(call, image, head, queries, keys, False)
    v = load_rows(call.value, image, head, keys, shape.VALUE_DIM, shape.VALUE_BLOCK)
    result = result * rescale[:, None]
    result = tl.dot(weights.to(v.dtype), v, result, input_precision=shape.PRECISION)
    return highest, total, result


@triton.jit
def sum_weights(
    normalizer, q, left, call, shape, image, head, i, queries, own, is_prefix,
    start, sums, value_starts, unit, EDGE: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """A second pass: only the final weights can be added up."""
    j, keys = walked(start, call.prefix, call.keys, EDGE, SIZE)
    slots = pair_slots(own, is_prefix, j, call.keys, call, shape, EDGE)
    k = load_rows(call.key, image, head, keys, shape.HEAD_DIM, shape.HEAD_BLOCK)
    right = load_factors(call.right, image, head, keys, shape)
    s = score_tile(
        q, k, left, right, call, shape, image, head, i, j, queries, keys, slots, False, EDGE
    )
    weights = tl.exp2(s * exponent_unit(call, shape) - normalizer[:, None])
    if call.seed is not None:
        weights *= dropout_tile(call, image, head, queries, keys, False)
    tokens = of_queries(queries, False)
    add_to_lookup(sums, value_starts, image, head, slots, tokens, weights, None, unit)
