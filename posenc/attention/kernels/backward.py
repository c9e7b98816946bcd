"""Backward, in Triton: scores and biases are computed again, tile by tile.

With weights `a = exp(s - lse)`, dropout factors `z`, and the gradients `g` of the output and `u` of
the sums per bucket:

    da_ij = z_ij (g_i v_j + u_i,bucket(i,j))      delta_i = sum_j a_ij da_ij
    ds_ij = a_ij (da_ij - delta_i)

Three kernels, each with the order of tiles in which its sums stay in registers: by keys (key,
value), by queries (query), and by pairs over all images (table of offsets).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from posenc.attention.kernels.tiles import (
    add,
    add_to_lookup,
    dropout_tile,
    load_rows,
    load_slots,
    multiply,
    of_keys,
    of_queries,
    origin,
    own_tile,
    pair_slots,
    read_lookup,
    score_tile,
    store_rows,
)


class Upstream(NamedTuple):
    """What backward gets: lse and delta are `[B, heads, N]`."""

    out_grad: Any  # Rows
    lse: Any
    delta: Any
    sums_grad: Any  # Lookup


@triton.jit
def row_deltas(out, out_grad, delta, heads, queries, shape):
    """Delta, without what comes from the sums: `g_i out_i`."""
    tile, image, head = own_tile(tl.cdiv(queries, shape.ROWS), heads)
    i = tile * shape.ROWS + tl.arange(0, shape.ROWS)
    o = load_rows(out, image, head, i, queries, shape.VALUE_DIM, shape.VALUE_BLOCK)
    g = load_rows(out_grad, image, head, i, queries, shape.VALUE_DIM, shape.VALUE_BLOCK)
    products = tl.sum(o.to(tl.float32) * g.to(tl.float32), 1)
    tl.store(delta + (image * heads + head) * queries + i, products, mask=i < queries)


@triton.jit
def exact_deltas(call, up, delta, shape):
    """Delta as it is defined: in 16 bits `row_deltas` has the rounding of the weights in it.

    An error of delta is one of the bias's mean in each row, which counts where biases are large.
    """
    tile, image, head = own_tile(tl.cdiv(call.queries, shape.ROWS), call.heads)
    i = tile * shape.ROWS + tl.arange(0, shape.ROWS)
    query_slots = load_slots(call.query_slots, i, call.queries)
    q = load_rows(call.query, image, head, i, call.queries, shape.HEAD_DIM, shape.HEAD_BLOCK)
    g = load_rows(up.out_grad, image, head, i, call.queries, shape.VALUE_DIM, shape.VALUE_BLOCK)
    lse = load_numbers(up.lse, image, head, call.heads, i, call.queries, float("inf"))
    none = tl.zeros([shape.ROWS], tl.float32)
    total = tl.zeros([shape.ROWS], tl.float32)
    for start in range(0, call.keys, shape.COLUMNS):
        j = start + tl.arange(0, shape.COLUMNS)
        slots = pair_slots(query_slots, load_slots(call.key_slots, j, call.keys), False)
        k = load_rows(call.key, image, head, j, call.keys, shape.HEAD_DIM, shape.HEAD_BLOCK)
        v = load_rows(call.value, image, head, j, call.keys, shape.VALUE_DIM, shape.VALUE_BLOCK)
        _, products = gradient_tile(
            q, k, v, g, lse, none, call, up, shape, image, head, i, j, slots, False
        )
        total += tl.sum(products, 1)
    tl.store(delta + (image * call.heads + head) * call.queries + i, total, mask=i < call.queries)


@triton.jit
def gradient_tile(
    q, k, v, g, lse, delta, call, up, shape, image, head, i, j, slots, BY_KEY: tl.constexpr
):
    """(weights after dropout, gradient of the scores)."""
    s = score_tile(q, k, call, shape, image, head, i, j, slots, BY_KEY)
    weights = tl.exp(s - of_queries(lse, BY_KEY))
    grad = multiply(g, v, shape.PRECISION, BY_KEY)
    if up.sums_grad is not None:
        tokens = of_queries(tl.minimum(i, call.queries - 1), BY_KEY)
        u = up.sums_grad
        grad += read_lookup(u.entries, u.buckets, image, head, slots, tokens)
    dropped = weights
    if call.seed is not None:
        factors = dropout_tile(call, image, head, i, j, BY_KEY)
        dropped = weights * factors
        grad *= factors
    return dropped, weights * (grad - of_queries(delta, BY_KEY))


@triton.jit
def load_numbers(numbers, image, head, heads, i, queries, OTHER: tl.constexpr):
    """One for each query, `OTHER` behind the last."""
    pointers = numbers + (image * heads + head) * queries + i
    return tl.load(pointers, mask=i < queries, other=OTHER)


@triton.jit
def pairs_inside(call, i, j, BY_KEY: tl.constexpr):
    """Neither behind the last query nor behind the last key."""
    return (of_queries(i, BY_KEY) < call.queries) & (of_keys(j, BY_KEY) < call.keys)


@triton.jit
def key_gradients(call, up, key_grad, value_grad, lookup_grad, right_grad, unit, shape):
    """One tile of keys against all queries: gradients of key, value, key lookup, right factor."""
    tile, image, head = own_tile(tl.cdiv(call.keys, shape.COLUMNS), call.heads)
    j = tile * shape.COLUMNS + tl.arange(0, shape.COLUMNS)
    key_slots = load_slots(call.key_slots, j, call.keys)
    k = load_rows(call.key, image, head, j, call.keys, shape.HEAD_DIM, shape.HEAD_BLOCK)
    v = load_rows(call.value, image, head, j, call.keys, shape.VALUE_DIM, shape.VALUE_BLOCK)
    of_key = tl.zeros([shape.COLUMNS, shape.HEAD_BLOCK], tl.float32)
    of_value = tl.zeros([shape.COLUMNS, shape.VALUE_BLOCK], tl.float32)
    of_right = tl.zeros([shape.COLUMNS, shape.RANK_BLOCK], tl.float32)
    # Each program owns its keys and walks over all queries: every gradient of a key is summed in
    # registers and written once, without atomics, which is why backward is two kernels, not one.
    first = 0
    if shape.CAUSAL:  # earlier queries do not see these keys
        first = tile * shape.COLUMNS // shape.ROWS * shape.ROWS
    for start in range(first, call.queries, shape.ROWS):
        i = start + tl.arange(0, shape.ROWS)
        slots = pair_slots(load_slots(call.query_slots, i, call.queries), key_slots, True)
        q = load_rows(call.query, image, head, i, call.queries, shape.HEAD_DIM, shape.HEAD_BLOCK)
        g = load_rows(up.out_grad, image, head, i, call.queries, shape.VALUE_DIM, shape.VALUE_BLOCK)
        lse = load_numbers(up.lse, image, head, call.heads, i, call.queries, float("inf"))
        delta = load_numbers(up.delta, image, head, call.heads, i, call.queries, 0.0)
        weights, ds = gradient_tile(
            q, k, v, g, lse, delta, call, up, shape, image, head, i, j, slots, True
        )
        of_value += tl.dot(weights.to(g.dtype), g, input_precision=shape.PRECISION)
        of_key += tl.dot(ds.to(q.dtype), q, input_precision=shape.PRECISION)
        if lookup_grad is not None:
            tokens = of_keys(tl.minimum(j, call.keys - 1), True)
            inside = pairs_inside(call, i, j, True)
            buckets = call.key_lookup.buckets
            add_to_lookup(lookup_grad, buckets, image, head, slots, tokens, ds, inside, unit)
        if right_grad is not None:
            left = load_rows(call.left, image, head, i, call.queries, shape.RANK, shape.RANK_BLOCK)
            of_right += tl.dot(ds, left, input_precision=shape.FACTOR_PRECISION)
    of_key = of_key * call.scale
    store_rows(key_grad, image, head, j, call.keys, of_key, shape.HEAD_DIM, shape.HEAD_BLOCK)
    store_rows(value_grad, image, head, j, call.keys, of_value, shape.VALUE_DIM, shape.VALUE_BLOCK)
    if right_grad is not None:
        store_rows(right_grad, image, head, j, call.keys, of_right, shape.RANK, shape.RANK_BLOCK)


@triton.jit
def query_gradients(call, up, query_grad, lookup_grad, left_grad, unit, shape):
    """One tile of queries against all keys: gradients of query, query lookup, left factor."""
    tile, image, head = own_tile(tl.cdiv(call.queries, shape.ROWS), call.heads)
    i = tile * shape.ROWS + tl.arange(0, shape.ROWS)
    query_slots = load_slots(call.query_slots, i, call.queries)
    q = load_rows(call.query, image, head, i, call.queries, shape.HEAD_DIM, shape.HEAD_BLOCK)
    g = load_rows(up.out_grad, image, head, i, call.queries, shape.VALUE_DIM, shape.VALUE_BLOCK)
    lse = load_numbers(up.lse, image, head, call.heads, i, call.queries, float("inf"))
    delta = load_numbers(up.delta, image, head, call.heads, i, call.queries, 0.0)
    of_query = tl.zeros([shape.ROWS, shape.HEAD_BLOCK], tl.float32)
    of_left = tl.zeros([shape.ROWS, shape.RANK_BLOCK], tl.float32)
    stop = call.keys
    if shape.CAUSAL:
        stop = tl.minimum(stop, (tile + 1) * shape.ROWS)
    for start in range(0, stop, shape.COLUMNS):
        j = start + tl.arange(0, shape.COLUMNS)
        slots = pair_slots(query_slots, load_slots(call.key_slots, j, call.keys), False)
        k = load_rows(call.key, image, head, j, call.keys, shape.HEAD_DIM, shape.HEAD_BLOCK)
        v = load_rows(call.value, image, head, j, call.keys, shape.VALUE_DIM, shape.VALUE_BLOCK)
        _, ds = gradient_tile(
            q, k, v, g, lse, delta, call, up, shape, image, head, i, j, slots, False
        )
        of_query += tl.dot(ds.to(k.dtype), k, input_precision=shape.PRECISION)
        if lookup_grad is not None:
            tokens = of_queries(tl.minimum(i, call.queries - 1), False)
            inside = pairs_inside(call, i, j, False)
            buckets = call.query_lookup.buckets
            add_to_lookup(lookup_grad, buckets, image, head, slots, tokens, ds, inside, unit)
        if left_grad is not None:
            right = load_rows(call.right, image, head, j, call.keys, shape.RANK, shape.RANK_BLOCK)
            of_left += tl.dot(ds, right, input_precision=shape.FACTOR_PRECISION)
    of_query = of_query * call.scale
    store_rows(query_grad, image, head, i, call.queries, of_query, shape.HEAD_DIM, shape.HEAD_BLOCK)
    if left_grad is not None:
        store_rows(left_grad, image, head, i, call.queries, of_left, shape.RANK, shape.RANK_BLOCK)


@triton.jit
def table_gradient(call, up, table_grad, unit, images, images_each, shape):
    """One tile of pairs, summed over `images_each` images before anything is written."""
    row_tiles = tl.cdiv(call.queries, shape.ROWS)
    column_tiles = tl.cdiv(call.keys, shape.COLUMNS)
    tile, group, head = own_tile(row_tiles * column_tiles, call.heads)
    i = (tile % row_tiles) * shape.ROWS + tl.arange(0, shape.ROWS)
    j = (tile // row_tiles) * shape.COLUMNS + tl.arange(0, shape.COLUMNS)
    query_slots = load_slots(call.query_slots, i, call.queries)
    slots = pair_slots(query_slots, load_slots(call.key_slots, j, call.keys), False)
    # Pairs of one offset share an entry of the table, so that writing needs atomics. Summing over
    # images first leaves one for each pair instead of one for each pair and image.
    total = tl.zeros([shape.ROWS, shape.COLUMNS], tl.float32)
    first = group * images_each
    for image in range(first, tl.minimum(first + images_each, images)):
        q = load_rows(call.query, image, head, i, call.queries, shape.HEAD_DIM, shape.HEAD_BLOCK)
        k = load_rows(call.key, image, head, j, call.keys, shape.HEAD_DIM, shape.HEAD_BLOCK)
        v = load_rows(call.value, image, head, j, call.keys, shape.VALUE_DIM, shape.VALUE_BLOCK)
        g = load_rows(up.out_grad, image, head, i, call.queries, shape.VALUE_DIM, shape.VALUE_BLOCK)
        lse = load_numbers(up.lse, image, head, call.heads, i, call.queries, float("inf"))
        delta = load_numbers(up.delta, image, head, call.heads, i, call.queries, 0.0)
        _, ds = gradient_tile(
            q, k, v, g, lse, delta, call, up, shape, image, head, i, j, slots, False
        )
        total += ds
    inside = pairs_inside(call, i, j, False)
    add(origin(table_grad, first, head) + slots, total, inside, unit)
