"""Forward, in Triton: online softmax over tiles of keys (FlashAttention, arXiv 2205.14135)."""

from __future__ import annotations

import triton
import triton.language as tl

from posenc.attention.kernels.tiles import (
    add_to_lookup,
    dropout_tile,
    load_rows,
    load_slots,
    of_keys,
    of_queries,
    own_tile,
    pair_slots,
    score_tile,
    store_rows,
)


@triton.jit
def forward(call, out, lse, sums, value_buckets, unit, shape):
    """One tile of queries against all keys.

    Writes out `[B, heads, N, Dv]` and lse `[B, heads, N]`, the logarithm of the sum of the
    exponentials of a row: infinity where all keys are masked, so that every weight is
    `exp(score - lse)`. With value terms, adds the weights to sums `[B, heads, T, N]`.
    """
    tile, image, head = own_tile(tl.cdiv(call.queries, shape.ROWS), call.heads)
    i = tile * shape.ROWS + tl.arange(0, shape.ROWS)
    query_slots = load_slots(call.query_slots, i, call.queries)
    q = load_rows(call.query, image, head, i, call.queries, shape.HEAD_DIM, shape.HEAD_BLOCK)
    largest = tl.full([shape.ROWS], float("-inf"), tl.float32)
    total = tl.zeros([shape.ROWS], tl.float32)
    result = tl.zeros([shape.ROWS, shape.VALUE_BLOCK], tl.float32)
    stop = call.keys
    if shape.CAUSAL:
        stop = tl.minimum(stop, (tile + 1) * shape.ROWS)
    for start in range(0, stop, shape.COLUMNS):
        j = start + tl.arange(0, shape.COLUMNS)
        slots = pair_slots(query_slots, load_slots(call.key_slots, j, call.keys), False)
        k = load_rows(call.key, image, head, j, call.keys, shape.HEAD_DIM, shape.HEAD_BLOCK)
        s = score_tile(q, k, call, shape, image, head, i, j, slots, False)
        # Softmax while the keys pass by: what was summed so far is scaled down whenever a larger
        # score appears, so that no exponential overflows and no row of scores is kept.
        highest = tl.maximum(largest, tl.max(s, 1))
        shift = tl.where(highest == float("-inf"), 0.0, highest)  # else inf - inf
        weights = tl.exp(s - shift[:, None])
        rescale = tl.exp(largest - shift)
        total = total * rescale + tl.sum(weights, 1)
        # After `total`: dropout drops weights of the softmax, it does not change the softmax.
        if call.seed is not None:
            weights *= dropout_tile(call, image, head, i, j, False)
        v = load_rows(call.value, image, head, j, call.keys, shape.VALUE_DIM, shape.VALUE_BLOCK)
        result = result * rescale[:, None]
        result += tl.dot(weights.to(v.dtype), v, input_precision=shape.PRECISION)
        largest = highest
    is_empty = total == 0
    total = tl.where(is_empty, 1.0, total)
    normaliser = tl.where(is_empty, float("inf"), largest + tl.log(total))
    result = result / total[:, None]
    store_rows(out, image, head, i, call.queries, result, shape.VALUE_DIM, shape.VALUE_BLOCK)
    rows = (image * call.heads + head) * call.queries + i
    tl.store(lse + rows, normaliser, mask=i < call.queries)
    if sums is not None:
        sum_weights(
            call, sums, value_buckets, unit, shape, image, head, i, query_slots, q, normaliser, stop
        )


@triton.jit
def sum_weights(
    call, sums, value_buckets, unit, shape, image, head, i, query_slots, q, normaliser, stop
):
    """A second pass: only the final weights can be added up."""
    tokens = of_queries(tl.minimum(i, call.queries - 1), False)
    for start in range(0, stop, shape.COLUMNS):
        j = start + tl.arange(0, shape.COLUMNS)
        slots = pair_slots(query_slots, load_slots(call.key_slots, j, call.keys), False)
        k = load_rows(call.key, image, head, j, call.keys, shape.HEAD_DIM, shape.HEAD_BLOCK)
        s = score_tile(q, k, call, shape, image, head, i, j, slots, False)
        weights = tl.exp(s - normaliser[:, None])
        if call.seed is not None:
            weights *= dropout_tile(call, image, head, i, j, False)
        inside = (of_queries(i, False) < call.queries) & (of_keys(j, False) < call.keys)
        add_to_lookup(sums, value_buckets, image, head, slots, tokens, weights, inside, unit)
