"""What one tile of scores needs, in Triton: reading, biases, dropout and sums per bucket.

The kernels are bound to `[B, heads, rows, columns]` tensors whose columns lie side by side; a
stride of 0 shares what images or heads have in common. Constants come in `Shape`, and what a call
does not have is None: both are known when a kernel is compiled, so that nothing remains of them.
A tile is `[queries, keys]`, or with `BY_KEY` `[keys, queries]`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl


class Rows(NamedTuple):
    """A tensor `[B, heads, rows, columns]`: its pointer and the strides of all but columns."""

    pointer: Any
    image: Any
    head: Any
    row: Any


class Mask(NamedTuple):
    """A tensor `[B, heads, queries, keys]`, any axis of which may be shared."""

    pointer: Any
    image: Any
    head: Any
    query: Any
    key: Any


class Lookup(NamedTuple):
    """Entry `[bucket, token]`, for each of some tables of buckets.

    Tokens are side by side: neighbours in a row of the grid mostly have the same bucket, so that
    the processors that work on neighbours read neighbours.
    """

    entries: Rows  # `values` is a name that tuples in Triton have
    buckets: Any  # [slots] each


class Call(NamedTuple):
    """An attention call."""

    query: Rows
    key: Rows
    value: Rows
    table: Any  # Rows of one row: entry [slot]
    query_lookup: Any  # Lookup, of the query's row
    key_lookup: Any  # Lookup, of the key's row
    left: Any  # Rows
    right: Any  # Rows
    keep: Any  # Mask, not zero where the pair is kept
    mask: Any  # Mask, added
    query_slots: Any
    key_slots: Any  # pair (i, j) has the slot `query_slots[i] - key_slots[j]`
    seed: Any  # of dropout
    heads: Any
    queries: Any
    keys: Any
    scale: Any
    dropout: Any  # the probability


class Shape(NamedTuple):
    """Constants of a kernel; blocks are powers of two."""

    ROWS: Any  # queries of a tile
    COLUMNS: Any  # keys of a tile
    HEAD_DIM: Any
    HEAD_BLOCK: Any
    VALUE_DIM: Any
    VALUE_BLOCK: Any
    RANK: Any
    RANK_BLOCK: Any
    CAUSAL: Any
    PRECISION: Any  # of products in float32
    FACTOR_PRECISION: Any  # of products of low-rank factors, always in float32


@triton.jit
def own_tile(tiles, heads):
    """(tile, image, head) of this program; neighbours share image and head, and so the cache."""
    program = tl.program_id(0)
    pair = program // tiles
    return program % tiles, (pair // heads).to(tl.int64), (pair % heads).to(tl.int64)


@triton.jit
def origin(x, image, head):
    """Where the rows of an image and head begin."""
    return x.pointer + image * x.image + head * x.head


@triton.jit
def load_rows(x, image, head, rows, num_rows, WIDTH, BLOCK):
    """`[rows, BLOCK]`; zero behind the last row and the last column.

    Rows of a large tensor may lie further apart than 32 bits count.
    """
    columns = tl.arange(0, BLOCK)
    inside = rows[:, None] < num_rows
    if WIDTH != BLOCK:
        inside = inside & (columns < WIDTH)[None, :]
    pointers = origin(x, image, head) + rows[:, None].to(tl.int64) * x.row + columns[None, :]
    return tl.load(pointers, mask=inside, other=0.0)


@triton.jit
def store_rows(x, image, head, rows, num_rows, values, WIDTH, BLOCK):
    """The reverse of `load_rows`."""
    columns = tl.arange(0, BLOCK)
    inside = rows[:, None] < num_rows
    if WIDTH != BLOCK:
        inside = inside & (columns < WIDTH)[None, :]
    pointers = origin(x, image, head) + rows[:, None].to(tl.int64) * x.row + columns[None, :]
    tl.store(pointers, values, mask=inside)


@triton.jit
def load_slots(slots, tokens, num_tokens):
    """Behind the last token, those of the last: any slot that exists."""
    if slots is not None:
        tokens = tl.load(slots + tl.minimum(tokens, num_tokens - 1))
    return tokens


@triton.jit
def of_queries(x, BY_KEY: tl.constexpr):
    """Numbers of the queries, along their axis of a tile."""
    return tl.expand_dims(x, 0 if BY_KEY else 1)


@triton.jit
def of_keys(x, BY_KEY: tl.constexpr):
    """Numbers of the keys, along their axis of a tile."""
    return tl.expand_dims(x, 1 if BY_KEY else 0)


@triton.jit
def pair_slots(query_slots, key_slots, BY_KEY: tl.constexpr):
    """The slot of each pair of a tile: one subtraction."""
    return of_queries(query_slots, BY_KEY) - of_keys(key_slots, BY_KEY)


@triton.jit
def read_lookup(entries, buckets, image, head, slots, tokens):
    """The sum over all tables of buckets."""
    pointers = origin(entries, image, head) + tokens
    total = 0.0
    for table in tl.static_range(len(buckets)):
        bucket = tl.load(buckets[table] + slots)
        total += tl.load(pointers + bucket * entries.row)
    return total


@triton.jit
def add_to_lookup(entries, buckets, image, head, slots, tokens, numbers, inside, unit):
    """The reverse: each number is added where `read_lookup` reads."""
    pointers = origin(entries, image, head) + tokens
    for table in tl.static_range(len(buckets)):
        bucket = tl.load(buckets[table] + slots)
        add(pointers + bucket * entries.row, numbers, inside, unit)


@triton.jit
def add(pointers, numbers, inside, unit):
    """Atomically. With a unit, as integers: their sum does not depend on the order."""
    if unit is not None:
        numbers = (numbers * tl.load(unit)).to(tl.int64)
    tl.atomic_add(pointers, numbers, mask=inside, sem="relaxed")


@triton.jit
def read_mask(mask, image, head, queries, keys):
    """Of these pairs; a whole mask may have more entries than 32 bits count."""
    pairs = queries.to(tl.int64) * mask.query + keys.to(tl.int64) * mask.key
    return tl.load(origin(mask, image, head) + pairs)


@triton.jit
def multiply(of_query, of_key, PRECISION: tl.constexpr, BY_KEY: tl.constexpr):
    """All products of two rows."""
    if BY_KEY:
        products = tl.dot(of_key, tl.trans(of_query), input_precision=PRECISION)
    else:
        products = tl.dot(of_query, tl.trans(of_key), input_precision=PRECISION)
    return products


@triton.jit
def score_tile(q, k, call, shape, image, head, i, j, slots, BY_KEY: tl.constexpr):
    """`scale q k^T + biases + mask`: minus infinity behind the last key."""
    s = multiply(q, k, shape.PRECISION, BY_KEY) * call.scale
    # Behind the end the last token is read again: loads then need no mask, and what they read is
    # overwritten below by minus infinity (keys) or never stored (queries).
    queries = of_queries(tl.minimum(i, call.queries - 1), BY_KEY)
    keys = of_keys(tl.minimum(j, call.keys - 1), BY_KEY)
    if call.table is not None:
        s += tl.load(origin(call.table, image, head) + slots)
    if call.query_lookup is not None:
        lookup = call.query_lookup
        s += read_lookup(lookup.entries, lookup.buckets, image, head, slots, queries)
    if call.key_lookup is not None:
        lookup = call.key_lookup
        s += read_lookup(lookup.entries, lookup.buckets, image, head, slots, keys)
    if call.left is not None:
        left = load_rows(call.left, image, head, i, call.queries, shape.RANK, shape.RANK_BLOCK)
        right = load_rows(call.right, image, head, j, call.keys, shape.RANK, shape.RANK_BLOCK)
        s += multiply(left, right, shape.FACTOR_PRECISION, BY_KEY)
    if call.mask is not None:
        s += read_mask(call.mask, image, head, queries, keys).to(tl.float32)
    if call.keep is not None:
        s = tl.where(read_mask(call.keep, image, head, queries, keys) != 0, s, float("-inf"))
    inside = of_keys(j, BY_KEY) < call.keys
    if shape.CAUSAL:
        inside = inside & (of_keys(j, BY_KEY) <= of_queries(i, BY_KEY))
    return tl.where(inside, s, float("-inf"))


@triton.jit
def dropout_tile(call, image, head, i, j, BY_KEY: tl.constexpr):
    """0 where a weight is dropped, else what it is multiplied with: from the seed and the pair."""
    # From the place of the pair, not from the order of calls: forward and both backward kernels,
    # whose tiles differ, drop the same weights without storing which.
    counter = of_queries(i, BY_KEY) * call.keys + of_keys(j, BY_KEY)
    zero = counter * 0
    pair = zero + (image * call.heads + head).to(tl.int32)
    number, _, _, _ = tl.philox(tl.load(call.seed), counter, pair, zero, zero)
    return tl.where(tl.uint_to_uniform_float(number) < call.dropout, 0.0, 1 / (1 - call.dropout))
