"""Biases and value tables against loops."""

import oracles
import pytest
import torch
from attend_calls import (
    BIASES,
    DIM,
    HEADS,
    LAYOUTS,
    WITH_TERMS,
    assert_same,
    index_of,
    loop_bias,
    qkv,
    random,
    swin_bucket,
    tensors,
    terms_of,
)

from posenc import attend
from posenc.terms import DenseBias, LookupBias


@pytest.mark.parametrize("backend", WITH_TERMS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", BIASES)
def test_biases_equal_loops(backend, layout, kind):
    index = index_of(layout)
    q, k, v = qkv(index.layout.num_tokens, value_dim=5)
    leaves = tensors(kind, index.layout.num_tokens, index.num_buckets)
    out = attend(q, k, v, terms_of(kind, leaves, index), scale=0.3, backend=backend)
    expected, _ = oracles.attention(q, k, v, loop_bias(kind, leaves, layout), scale=0.3)
    assert_same(out, expected, [q, k, v, *leaves])


@pytest.mark.parametrize("backend", ["reference", "tiled"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("value_dim", [DIM, 9])
def test_value_lookup_equals_loops(backend, layout, value_dim):
    index = index_of(layout)
    q, k, v = qkv(index.layout.num_tokens, value_dim)
    bias = tensors("query", index.layout.num_tokens, index.num_buckets)
    table = tensors("value", index.layout.num_tokens, index.num_buckets, value_dim)
    terms = terms_of("query", bias, index) + terms_of("value", table, index)
    expected, probabilities = oracles.attention(q, k, v, loop_bias("query", bias, layout))
    extra = oracles.value_lookup(probabilities, table[0], swin_bucket(layout), *layout)
    out = attend(q, k, v, terms, backend=backend)
    assert_same(out, expected + extra, [q, k, v, *bias, *table])


def test_one_term_needs_no_list():
    bias = DenseBias(random(1, 1, 5, 5).float())
    q = random(2, HEADS, 5, DIM).float()
    assert torch.equal(attend(q, q, q, bias), attend(q, q, q, [bias]))


@pytest.mark.parametrize("backend", WITH_TERMS)
def test_terms_add_up(backend):
    index = index_of((2, 2, 1))
    q, k, v = qkv(5)
    one, two = random(1, 1, 5, 5), random(2, HEADS, 1, index.num_buckets)
    terms = [DenseBias(one), LookupBias(two, index)]
    total = DenseBias(one + LookupBias(two, index).dense())
    torch.testing.assert_close(
        attend(q, k, v, terms, backend=backend),
        attend(q, k, v, total, backend=backend),
        rtol=1e-13,
        atol=1e-13,
    )
