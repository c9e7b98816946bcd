"""What one tile of scores needs, in Triton: reading, biases, dropout and sums per bucket.

The kernels are bound to `[B, heads, rows, columns]` tensors whose columns lie side by side; a
stride of 0 shares what images or heads have in common. Constants come in `Shape`, and what a call
does not have is None: both are known when a kernel is compiled, so that nothing remains of them.

A tile is `[queries, keys]`, or with `BY_KEY` `[keys, queries]`: a program *owns* the tokens of its
rows and *walks* over those of the columns. Tokens are walked in the order of their places: the
grid's first, the prefix tokens last. A walk is a main loop, whose tiles are whole and of the grid
alone, so that nothing in it is masked, and then one of `EDGE` columns over what is left.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
# A mask's large negative numbers are used up to here: times log2(e) they stay finite.
LOWEST = tl.constexpr(-1e38)


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

    Tokens are side by side: neighbors in a row of the grid mostly have the same bucket, so that
    the processors that work on neighbors read neighbors. A table has for each slot where the
    row of its bucket begins, in bytes of numbers of 32 bits.
    """

    entries: Rows  # `values` is a name that tuples in Triton have
    starts: Any  # [slots] each


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
    seed: Any  # of dropout
    heads: Any
    queries: Any
    keys: Any
    prefix: Any  # tokens before the grid
    height: Any  # of the grid
    scale: Any
    dropout: Any  # the probability


class Shape(NamedTuple):
    """Constants of a kernel; blocks are powers of two."""

    ROWS: Any  # queries of a tile
    COLUMNS: Any  # keys of a tile
    EDGE: Any  # tokens of a tile at the end of a walk
    HEAD_DIM: Any
    HEAD_BLOCK: Any
    VALUE_DIM: Any
    VALUE_BLOCK: Any
    RANK: Any
    RANK_BLOCK: Any
    FOLDED: Any  # products of the factors are added to those of query and key, before the scale
    CAUSAL: Any
    PRECISION: Any  # of products in float32
    FACTOR_PRECISION: Any  # of products of low-rank factors in float32
    WIDTH: Any  # of the grid; 0 where no term needs one
    BLOCKED: Any  # the form of tables, see slots.py
    RUN: Any  # so many neighbors in a table are read at once


@triton.jit
def own_tile(tiles, heads):
    """(tile, image, head) of this program; neighbors share image and head, and so the cache."""
    program = tl.program_id(0)
    pair = program // tiles
    return program % tiles, (pair // heads).to(tl.int64), (pair % heads).to(tl.int64)


@triton.jit
def tokens_at(places, prefix, count):
    """The tokens at these places; behind the last place, the last one again."""
    # What is read there is overwritten by minus infinity (keys) or never stored (queries).
    places = tl.minimum(places, count - 1)
    return tl.where(places < count - prefix, places + prefix, places - (count - prefix))


@triton.jit
def walked(start, prefix, count, EDGE: tl.constexpr, SIZE: tl.constexpr):
    """(places, tokens) of the tile that begins there."""
    places = start + tl.arange(0, SIZE)
    tokens = tokens_at(places, prefix, count) if EDGE else places + prefix
    return places, tokens


@triton.jit
def whole_tiles(count, prefix, SIZE: tl.constexpr):
    """Where the main loop ends: so many tokens of the grid fill tiles."""
    return (count - prefix) // SIZE * SIZE


@triton.jit
def origin(x, image, head):
    """Where the rows of an image and head begin."""
    return x.pointer + image * x.image + head * x.head


@triton.jit
def load_rows(x, image, head, rows, WIDTH, BLOCK):
    """`[rows, BLOCK]`; zero behind the last column.

    Rows of a large tensor may lie further apart than 32 bits count.
    """
    columns = tl.arange(0, BLOCK)
    pointers = origin(x, image, head) + (rows[:, None].to(tl.int64) * x.row + columns[None, :])
    if WIDTH != BLOCK:
        inside = tl.broadcast_to((columns < WIDTH)[None, :], pointers.shape)
        values = tl.load(pointers, mask=inside, other=0.0)
    else:
        values = tl.load(pointers)
    return values


@triton.jit
def store_rows(x, image, head, rows, inside, values, WIDTH, BLOCK):
    """The reverse of `load_rows`, of some rows."""
    columns = tl.arange(0, BLOCK)
    inside = inside[:, None]
    if WIDTH != BLOCK:
        inside = inside & (columns < WIDTH)[None, :]
    pointers = origin(x, image, head) + (rows[:, None].to(tl.int64) * x.row + columns[None, :])
    tl.store(pointers, values, mask=inside)


@triton.jit
def of_queries(x, BY_KEY: tl.constexpr):
    """Numbers of the queries, along their axis of a tile."""
    return tl.expand_dims(x, 0 if BY_KEY else 1)


@triton.jit
def of_keys(x, BY_KEY: tl.constexpr):
    """Numbers of the keys, along their axis of a tile."""
    return tl.expand_dims(x, 1 if BY_KEY else 0)


@triton.jit
def add_lookup(sums, lookup, image, head, slots, tokens):
    """Adds the entries of these pairs, from all tables of buckets."""
    for table in tl.static_range(len(lookup.starts)):
        start = tl.load(lookup.starts[table] + slots)
        sums += tl.load(entry_pointers(lookup.entries, image, head, tokens, start))
    return sums


@triton.jit
def add_to_lookup(entries, starts, image, head, slots, tokens, numbers, inside, unit):
    """The reverse: each number is added to the entry of its pair."""
    for table in tl.static_range(len(starts)):
        start = tl.load(starts[table] + slots)
        add(entry_pointers(entries, image, head, tokens, start), numbers, inside, unit)


@triton.jit
def entry_pointers(entries, image, head, tokens, start):
    """Of the entries of some tokens in rows that begin at `start`."""
    # In bytes and without a sign, so that an address is one addition of 64 bits; tokens before
    # rows, since the pointers of tokens are the same in all tiles.
    pointers = origin(entries, image, head) + tokens
    dtype: tl.constexpr = pointers.dtype.scalar
    size: tl.constexpr = dtype.element_ty.primitive_bitwidth // 32
    offsets = (start * size).to(tl.uint32).to(tl.uint64)
    return (pointers.to(tl.pointer_type(tl.uint8)) + offsets).to(dtype)


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
def add_products(of_query, of_key, sums, BY_KEY: tl.constexpr):
    """The same in 16 bits, added where the tensor cores keep their sums."""
    if BY_KEY:
        sums = tl.dot(of_key, tl.trans(of_query), sums)
    else:
        sums = tl.dot(of_query, tl.trans(of_key), sums)
    return sums


@triton.jit
def has_biases(call, shape):
    """Whether something is added to the scores after the scale."""
    lookups: tl.constexpr = call.query_lookup is not None or call.key_lookup is not None
    factors: tl.constexpr = call.left is not None and not shape.FOLDED
    return lookups or factors or call.table is not None or call.mask is not None


@triton.jit
def exponent_unit(call, shape):
    """`exp2(unit * s)` is the exponential of a score, if `s` is what `score_tile` returns."""
    # In base 2: what a device computes at once, a multiplication less for each score. Without
    # biases the scale is part of the unit, another one less.
    return LOG2_E if has_biases(call, shape) else call.scale * LOG2_E


@triton.jit
def score_tile(
    q,
    k,
    left,
    right,
    call,
    shape,
    image,
    head,
    i,
    j,
    queries,
    keys,
    slots,
    BY_KEY: tl.constexpr,
    EDGE: tl.constexpr,
):
    """`scale q k^T + biases + mask`, or `q k^T` where nothing is added.

    At an edge, and where attention is causal, minus infinity for pairs that do not exist.
    """
    s = multiply(q, k, shape.PRECISION, BY_KEY)
    if shape.FOLDED:
        s = add_products(left, right, s, BY_KEY)
    if has_biases(call, shape):
        s = s * call.scale
    queries = of_queries(queries, BY_KEY)
    keys = of_keys(keys, BY_KEY)
    if call.table is not None:
        s += tl.load(origin(call.table, image, head) + slots)
    if call.query_lookup is not None:
        s = add_lookup(s, call.query_lookup, image, head, slots, queries)
    if call.key_lookup is not None:
        s = add_lookup(s, call.key_lookup, image, head, slots, keys)
    if call.left is not None and not shape.FOLDED:
        s += multiply(left, right, shape.FACTOR_PRECISION, BY_KEY)
    if call.mask is not None:
        mask = read_mask(call.mask, image, head, queries, keys).to(tl.float32)
        s += tl.where(mask == float("-inf"), mask, tl.maximum(mask, LOWEST))
    if call.keep is not None:
        s = tl.where(read_mask(call.keep, image, head, queries, keys) != 0, s, float("-inf"))
    if EDGE:
        inside = of_keys(j, BY_KEY) < call.keys
        if shape.CAUSAL:
            inside = inside & (of_keys(j, BY_KEY) <= of_queries(i, BY_KEY))
        s = tl.where(inside, s, float("-inf"))
    return s


@triton.jit
def load_factors(x, image, head, tokens, shape):
    """Of these tokens; anything where there are no factors."""
    if x is not None:
        factors = load_rows(x, image, head, tokens, shape.RANK, shape.RANK_BLOCK)
    else:
        factors = tokens
    return factors


@triton.jit
def dropout_tile(call, image, head, queries, keys, BY_KEY: tl.constexpr):
    """0 where a weight is dropped, else what it is multiplied with: from the seed and the pair."""
    # From the tokens, not from the order of calls: forward and both backward kernels, whose tiles
    # differ, drop the same weights without storing which.
    counter = of_queries(queries, BY_KEY) * call.keys + of_keys(keys, BY_KEY)
    zero = counter * 0
    pair = zero + (image * call.heads + head).to(tl.int32)
    number, _, _, _ = tl.philox(tl.load(call.seed), counter, pair, zero, zero)
    return tl.where(tl.uint_to_uniform_float(number) < call.dropout, 0.0, 1 / (1 - call.dropout))
