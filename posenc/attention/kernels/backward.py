"""Backward, in Triton: scores and biases are computed again, tile by tile.

With weights `a = exp2(s - lse)`, dropout factors `z`, and the gradients `g` of the output and `u`
of the sums per bucket:

    da_ij = z_ij (g_i v_j + u_i,bucket(i,j))      delta_i = sum_j a_ij da_ij
    ds_ij = a_ij (da_ij - delta_i)

Three kernels, each with the order of tiles in which its sums stay in registers: by keys (key,
value), by queries (query), and by pairs over all images (table of offsets).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from posenc.attention.kernels.forward import walk_of_keys
from posenc.attention.kernels.slots import own_slots, pair_slots
from posenc.attention.kernels.tiles import (
    add,
    add_lookup,
    add_to_lookup,
    dropout_tile,
    exponent_unit,
    load_factors,
    load_rows,
    multiply,
    of_keys,
    of_queries,
    origin,
    own_tile,
    score_tile,
    store_rows,
    tokens_at,
    walked,
    whole_tiles,
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
    tokens = tl.minimum(i, queries - 1)
    o = load_rows(out, image, head, tokens, shape.VALUE_DIM, shape.VALUE_BLOCK)
    g = load_rows(out_grad, image, head, tokens, shape.VALUE_DIM, shape.VALUE_BLOCK)
    products = tl.sum(o.to(tl.float32) * g.to(tl.float32), 1)
    tl.store(delta + (image * heads + head) * queries + i, products, mask=i < queries)


@triton.jit
def load_numbers(numbers, image, head, call, queries):
    """One for each of these queries."""
    return tl.load(numbers + (image * call.heads + head) * call.queries + queries)


@triton.jit
def load_lse(lse, image, head, call, i, queries):
    """Infinity behind the last query, so that its weights are nothing."""
    return tl.where(i < call.queries, load_numbers(lse, image, head, call, queries), float("inf"))


@triton.jit
def gradient_tile(
    q, k, v, g, left, right, lse, delta, call, up, shape, image, head, i, j, queries, keys, slots,
    BY_KEY: tl.constexpr, EDGE: tl.constexpr,
):  # fmt: skip
    """(weights after dropout, gradient of the scores)."""
    s = score_tile(
        q, k, left, right, call, shape, image, head, i, j, queries, keys, slots, BY_KEY, EDGE
    )
    weights = tl.exp2(s * exponent_unit(call, shape) - of_queries(lse, BY_KEY))
    grad = multiply(g, v, shape.PRECISION, BY_KEY)
    if up.sums_grad is not None:
        tokens = of_queries(queries, BY_KEY)
        grad = add_lookup(grad, up.sums_grad, image, head, slots, tokens)
    dropped = weights
    if call.seed is not None:
        factors = dropout_tile(call, image, head, queries, keys, BY_KEY)
        dropped = weights * factors
        grad *= factors
    return dropped, weights * (grad - of_queries(delta, BY_KEY))


@triton.jit
def add_factor_products(sums, ds, factors, shape):
    """Adds `ds factors`; the gradient of the scores is more exact than 16 bits hold."""
    if shape.FOLDED:
        # The upper half of a float32 is a number in bfloat16: cut off, not rounded, in one step.
        high = (ds.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)
        sums = tl.dot(high.to(factors.dtype), factors, sums)
        sums = tl.dot((ds - high).to(factors.dtype), factors, sums)
    else:
        sums = tl.dot(ds, factors, sums, input_precision=shape.FACTOR_PRECISION)
    return sums


@triton.jit
def exact_deltas(call, up, delta, shape):
    """Delta as it is defined: in 16 bits `row_deltas` has the rounding of the weights in it.

    An error of delta is one of the bias's mean in each row, which counts where biases are large.
    """
    tile, image, head = own_tile(tl.cdiv(call.queries, shape.ROWS), call.heads)
    i = tile * shape.ROWS + tl.arange(0, shape.ROWS)
    queries = tokens_at(i, call.prefix, call.queries)
    is_prefix = i >= call.queries - call.prefix
    own = own_slots(i, is_prefix, call, shape)
    q = load_rows(call.query, image, head, queries, shape.HEAD_DIM, shape.HEAD_BLOCK)
    g = load_rows(up.out_grad, image, head, queries, shape.VALUE_DIM, shape.VALUE_BLOCK)
    left = load_factors(call.left, image, head, queries, shape)
    lse = load_lse(up.lse, image, head, call, i, queries)
    total = tl.zeros([shape.ROWS], tl.float32)
    whole, stop = walk_of_keys(tile, call, shape)
    for start in range(0, whole, shape.COLUMNS):
        total = add_delta(
            total, q, g, left, lse, call, up, shape, image, head, i, queries, own, is_prefix,
            start, False, shape.COLUMNS,
        )  # fmt: skip
    for start in tl.range(whole, stop, shape.EDGE, num_stages=1):
        total = add_delta(
            total, q, g, left, lse, call, up, shape, image, head, i, queries, own, is_prefix,
            start, True, shape.EDGE,
        )  # fmt: skip
    rows = (image * call.heads + head) * call.queries + queries
    tl.store(delta + rows, total, mask=i < call.queries)


@triton.jit
def add_delta(
    total, q, g, left, lse, call, up, shape, image, head, i, queries, own, is_prefix,
    start, EDGE: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Of one tile of keys."""
    j, keys = walked(start, call.prefix, call.keys, EDGE, SIZE)
    slots = pair_slots(own, is_prefix, j, call.keys, call, shape, EDGE)
    k = load_rows(call.key, image, head, keys, shape.HEAD_DIM, shape.HEAD_BLOCK)
    v = load_rows(call.value, image, head, keys, shape.VALUE_DIM, shape.VALUE_BLOCK)
    right = load_factors(call.right, image, head, keys, shape)
    _, products = gradient_tile(
        q, k, v, g, left, right, lse, tl.zeros_like(lse), call, up, shape, image, head, i, j,
        queries, keys, slots, False, EDGE,
    )  # fmt: skip
    return total + tl.sum(products, 1)


@triton.jit
def query_gradients(call, up, query_grad, lookup_grad, left_grad, unit, shape):
    """One tile of queries against all keys: gradients of query, query lookup, left factor."""
    tile, image, head = own_tile(tl.cdiv(call.queries, shape.ROWS), call.heads)
    i = tile * shape.ROWS + tl.arange(0, shape.ROWS)
    queries = tokens_at(i, call.prefix, call.queries)
    is_prefix = i >= call.queries - call.prefix
    own = own_slots(i, is_prefix, call, shape)
    q = load_rows(call.query, image, head, queries, shape.HEAD_DIM, shape.HEAD_BLOCK)
    g = load_rows(up.out_grad, image, head, queries, shape.VALUE_DIM, shape.VALUE_BLOCK)
    left = load_factors(call.left, image, head, queries, shape)
    lse = load_lse(up.lse, image, head, call, i, queries)
    delta = load_numbers(up.delta, image, head, call, queries)
    of_query = tl.zeros([shape.ROWS, shape.HEAD_BLOCK], tl.float32)
    of_left = tl.zeros([shape.ROWS, shape.RANK_BLOCK], tl.float32)
    whole, stop = walk_of_keys(tile, call, shape)
    for start in range(0, whole, shape.COLUMNS):
        of_query, of_left = add_to_queries(
            of_query, of_left, q, g, left, lse, delta, call, up, shape, image, head, i, queries,
            own, is_prefix, start, lookup_grad, left_grad, unit, False, shape.COLUMNS,
        )  # fmt: skip
    for start in tl.range(whole, stop, shape.EDGE, num_stages=1):
        of_query, of_left = add_to_queries(
            of_query, of_left, q, g, left, lse, delta, call, up, shape, image, head, i, queries,
            own, is_prefix, start, lookup_grad, left_grad, unit, True, shape.EDGE,
        )  # fmt: skip
    of_query = of_query * call.scale
    inside = i < call.queries
    store_rows(query_grad, image, head, queries, inside, of_query, shape.HEAD_DIM, shape.HEAD_BLOCK)
    if left_grad is not None:
        store_rows(left_grad, image, head, queries, inside, of_left, shape.RANK, shape.RANK_BLOCK)


@triton.jit
def add_to_queries(
    of_query, of_left, q, g, left, lse, delta, call, up, shape, image, head, i, queries,
    own, is_prefix, start, lookup_grad, left_grad, unit, EDGE: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """What one tile of keys adds to the gradients."""
    j, keys = walked(start, call.prefix, call.keys, EDGE, SIZE)
    slots = pair_slots(own, is_prefix, j, call.keys, call, shape, EDGE)
    k = load_rows(call.key, image, head, keys, shape.HEAD_DIM, shape.HEAD_BLOCK)
    v = load_rows(call.value, image, head, keys, shape.VALUE_DIM, shape.VALUE_BLOCK)
    right = load_factors(call.right, image, head, keys, shape)
    _, ds = gradient_tile(
        q, k, v, g, left, right, lse, delta, call, up, shape, image, head, i, j, queries, keys,
        slots, False, EDGE,
    )  # fmt: skip
    of_query = tl.dot(ds.to(k.dtype), k, of_query, input_precision=shape.PRECISION)
    if lookup_grad is not None:
        tokens, starts = of_queries(queries, False), call.query_lookup.starts
        add_to_lookup(lookup_grad, starts, image, head, slots, tokens, ds, None, unit)
    if left_grad is not None:
        of_left = add_factor_products(of_left, ds, right, shape)
    return of_query, of_left


@triton.jit
def key_gradients(call, up, key_grad, value_grad, lookup_grad, right_grad, unit, shape):
    """One tile of keys against all queries: gradients of key, value, key lookup, right factor."""
    tile, image, head = own_tile(tl.cdiv(call.keys, shape.COLUMNS), call.heads)
    j = tile * shape.COLUMNS + tl.arange(0, shape.COLUMNS)
    keys = tokens_at(j, call.prefix, call.keys)
    is_prefix = j >= call.keys - call.prefix
    own = own_slots(j, is_prefix, call, shape)
    k = load_rows(call.key, image, head, keys, shape.HEAD_DIM, shape.HEAD_BLOCK)
    v = load_rows(call.value, image, head, keys, shape.VALUE_DIM, shape.VALUE_BLOCK)
    right = load_factors(call.right, image, head, keys, shape)
    of_key = tl.zeros([shape.COLUMNS, shape.HEAD_BLOCK], tl.float32)
    of_value = tl.zeros([shape.COLUMNS, shape.VALUE_BLOCK], tl.float32)
    of_right = tl.zeros([shape.COLUMNS, shape.RANK_BLOCK], tl.float32)
    # Each program owns its keys and walks over all queries: every gradient of a key is summed in
    # registers and written once, without atomics, which is why backward is two kernels, not one.
    first, whole = walk_of_queries(tile, call, shape)
    if shape.CAUSAL:  # the diagonal comes first, as an edge
        for start in tl.range(
            tile * shape.COLUMNS // shape.ROWS * shape.ROWS,
            tl.minimum(first, call.queries),
            shape.EDGE,
            num_stages=1,
        ):
            of_key, of_value, of_right = add_to_keys(
                of_key, of_value, of_right, k, v, right, call, up, shape, image, head, j, keys,
                own, is_prefix, start, lookup_grad, right_grad, unit, True, shape.EDGE,
            )  # fmt: skip
    for start in range(first, whole, shape.ROWS):
        of_key, of_value, of_right = add_to_keys(
            of_key, of_value, of_right, k, v, right, call, up, shape, image, head, j, keys,
            own, is_prefix, start, lookup_grad, right_grad, unit, False, shape.ROWS,
        )  # fmt: skip
    for start in tl.range(tl.maximum(first, whole), call.queries, shape.EDGE, num_stages=1):
        of_key, of_value, of_right = add_to_keys(
            of_key, of_value, of_right, k, v, right, call, up, shape, image, head, j, keys,
            own, is_prefix, start, lookup_grad, right_grad, unit, True, shape.EDGE,
        )  # fmt: skip
    of_key = of_key * call.scale
    inside = j < call.keys
    store_rows(key_grad, image, head, keys, inside, of_key, shape.HEAD_DIM, shape.HEAD_BLOCK)
    store_rows(value_grad, image, head, keys, inside, of_value, shape.VALUE_DIM, shape.VALUE_BLOCK)
    if right_grad is not None:
        store_rows(right_grad, image, head, keys, inside, of_right, shape.RANK, shape.RANK_BLOCK)


@triton.jit
def add_to_keys(
    of_key, of_value, of_right, k, v, right, call, up, shape, image, head, j, keys,
    own, is_prefix, start, lookup_grad, right_grad, unit, EDGE: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """What one tile of queries adds to the gradients."""
    i, queries = walked(start, call.prefix, call.queries, EDGE, SIZE)
    slots = pair_slots(own, is_prefix, i, call.queries, call, shape, EDGE)
    q = load_rows(call.query, image, head, queries, shape.HEAD_DIM, shape.HEAD_BLOCK)
    g = load_rows(up.out_grad, image, head, queries, shape.VALUE_DIM, shape.VALUE_BLOCK)
    left = load_factors(call.left, image, head, queries, shape)
    lse = load_numbers(up.lse, image, head, call, queries)
    if EDGE:
        lse = tl.where(i < call.queries, lse, float("inf"))
    delta = load_numbers(up.delta, image, head, call, queries)
    weights, ds = gradient_tile(
        q, k, v, g, left, right, lse, delta, call, up, shape, image, head, i, j, queries, keys,
        slots, True, EDGE,
    )  # fmt: skip
    of_value = tl.dot(weights.to(g.dtype), g, of_value, input_precision=shape.PRECISION)
    of_key = tl.dot(ds.to(q.dtype), q, of_key, input_precision=shape.PRECISION)
    if lookup_grad is not None:
        tokens, starts = of_keys(keys, True), call.key_lookup.starts
        # Keys behind the last are the last again.
        inside = tl.broadcast_to(of_keys(j < call.keys, True), ds.shape)
        add_to_lookup(lookup_grad, starts, image, head, slots, tokens, ds, inside, unit)
    if right_grad is not None:
        of_right = add_factor_products(of_right, ds, left, shape)
    return of_key, of_value, of_right


@triton.jit
def walk_of_queries(tile, call, shape):
    """Where the main loop of a tile of keys begins and ends."""
    first, whole = 0, whole_tiles(call.queries, call.prefix, shape.ROWS)
    if shape.CAUSAL:  # the first tile of queries that see all these keys
        first = tl.cdiv((tile + 1) * shape.COLUMNS, shape.ROWS) * shape.ROWS
    return first, whole


@triton.jit
def table_gradient(call, up, table_grad, unit, images, images_each, shape):
    """One tile of pairs, summed over `images_each` images before anything is written."""
    row_tiles = tl.cdiv(call.queries, shape.ROWS)
    column_tiles = tl.cdiv(call.keys, shape.COLUMNS)
    tile, group, head = own_tile(row_tiles * column_tiles, call.heads)
    first = group * images_each
    last = tl.minimum(first + images_each, images)
    i = (tile % row_tiles) * shape.ROWS + tl.arange(0, shape.ROWS)
    start = (tile // row_tiles) * shape.COLUMNS
    if start + shape.COLUMNS <= call.keys - call.prefix:
        add_pairs(call, up, table_grad, unit, first, last, head, i, start, shape, False)
    else:
        add_pairs(call, up, table_grad, unit, first, last, head, i, start, shape, True)


@triton.jit
def add_pairs(call, up, table_grad, unit, first, last, head, i, start, shape, EDGE: tl.constexpr):
    """The gradient of a tile of pairs, summed over images."""
    queries = tokens_at(i, call.prefix, call.queries)
    is_prefix = i >= call.queries - call.prefix
    own = own_slots(i, is_prefix, call, shape)
    j, keys = walked(start, call.prefix, call.keys, EDGE, shape.COLUMNS)
    slots = pair_slots(own, is_prefix, j, call.keys, call, shape, EDGE)
    # Pairs of one offset share an entry of the table, so that writing needs atomics. Summing over
    # images first leaves one for each pair instead of one for each pair and image.
    total = tl.zeros([shape.ROWS, shape.COLUMNS], tl.float32)
    for image in range(first, last):
        q = load_rows(call.query, image, head, queries, shape.HEAD_DIM, shape.HEAD_BLOCK)
        k = load_rows(call.key, image, head, keys, shape.HEAD_DIM, shape.HEAD_BLOCK)
        v = load_rows(call.value, image, head, keys, shape.VALUE_DIM, shape.VALUE_BLOCK)
        g = load_rows(up.out_grad, image, head, queries, shape.VALUE_DIM, shape.VALUE_BLOCK)
        left = load_factors(call.left, image, head, queries, shape)
        right = load_factors(call.right, image, head, keys, shape)
        lse = load_lse(up.lse, image, head, call, i, queries)
        delta = load_numbers(up.delta, image, head, call, queries)
        _, ds = gradient_tile(
            q, k, v, g, left, right, lse, delta, call, up, shape, image, head, i, j, queries, keys,
            slots, False, EDGE,
        )  # fmt: skip
        total += ds
    # Behind the last query or key nothing is added, wherever that may be.
    add(origin(table_grad, first, head) + slots, total, None, unit)
