"""Dropout of attention and of the value lookup."""

import math

import pytest
import torch
import torch.nn.functional as F
from attend_calls import BACKENDS, DIM, HEADS, index_of, qkv, random

from posenc import attend
from posenc.terms import DenseBias, ValueLookup


def plain_dropout(q, k, v, p, table, buckets):
    """With the dropped attention weighting values and table rows alike."""
    attention = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1)
    attention = F.dropout(attention, p)
    return attention @ v + torch.einsum("bhij,ijd->bhid", attention, table[0][buckets])


def test_reference_dropout_drops_attention_also_for_the_value_lookup():
    index = index_of((2, 3, 1))
    q, k, v = (x.detach() for x in qkv(7))
    table = random(1, index.num_buckets, DIM, seed=4)
    torch.manual_seed(3)
    expected = plain_dropout(q, k, v, 0.5, table, index.dense())
    torch.manual_seed(3)
    out = attend(q, k, v, ValueLookup(table, index), dropout_p=0.5)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


def test_reference_dropout_repeats_with_the_seed():
    q, k, v = (x.detach() for x in qkv(7))
    bias = DenseBias(random(1, 1, 7, 7))
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(attend(q, k, v, bias, dropout_p=0.3, backend="reference"))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_statistics(backend):
    """Uniform attention over n keys of value 1: mean 1, variance p / (n (1 - p))."""
    tokens, p, batch = 25, 0.3, 400
    q = torch.zeros(batch, HEADS, tokens, 4)
    bias = DenseBias(torch.zeros(1, 1, tokens, tokens))
    torch.manual_seed(0)
    out = attend(q, q, torch.ones_like(q), bias, dropout_p=p, backend=backend)
    samples = out[..., 0].flatten()
    variance = p / (tokens * (1 - p))
    assert abs(samples.mean() - 1) < 5 * math.sqrt(variance / len(samples))
    assert abs(samples.var() / variance - 1) < 0.1


def test_no_dropout_uses_no_random_numbers():
    q, k, v = (x.detach() for x in qkv(7))
    before = torch.get_rng_state()
    attend(q, k, v, DenseBias(random(1, 1, 7, 7)), backend="reference")
    assert torch.equal(torch.get_rng_state(), before)
