"""The weights of `attend`."""

import oracles
import pytest
import torch
from capture_cases import PREFIXES, assert_close
from expected_bias import BIAS
from torch.nn.attention import SDPBackend, sdpa_kernel

import posenc
from posenc import TokenLayout
from posenc.attention import attend, attention_matrix


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("encoding", ["irpe", "swin", "human_part"])
def test_attention_matrix_is_what_multiplies_the_values(encoding, prefix):
    layout = TokenLayout(3, 5, prefix)
    module = posenc.create_encoding(encoding, layout=layout, num_heads=2, head_dim=4)
    module = oracles.randomize(module.double())
    q, k, v, _ = oracles.random_qkv(layout.num_tokens)
    mask = torch.randn(2, 1, layout.num_tokens, layout.num_tokens, dtype=torch.float64)
    for options in ({}, {"scale": 0.7}, {"attn_mask": mask}, {"attn_mask": mask > -1}):
        terms = module(q, k, layout, scale=options.get("scale"))
        weights = attention_matrix(q, k, v, terms, **options)
        expected = attend(q, k, v, terms, backend="sdpa", **options)
        assert_close(weights @ v, expected)
        bias = BIAS[encoding](module, q, (3, 5, prefix), options.get("scale", 0.5))
        _, rows = oracles.attention(q, k, v, bias, options.get("attn_mask"), options.get("scale"))
        assert_close(weights, rows)


def test_attention_matrix_without_terms_is_that_of_sdpa():
    q = torch.randn(2, 4, 5, 3, dtype=torch.float64)
    k, v = torch.randn(2, 2, 2, 5, 3, dtype=torch.float64)
    grouped = {"is_causal": True, "enable_gqa": True}
    with sdpa_kernel(SDPBackend.MATH):
        expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, **grouped)
    weights = attention_matrix(q, k, v, **grouped)
    assert_close(weights @ v.repeat_interleave(2, 1), expected)
    assert torch.equal(weights, weights.tril())


def test_attention_matrix_checks_its_arguments():
    q = torch.zeros(1, 2, 16, 4)
    with pytest.raises(ValueError, match="key must be"):
        attention_matrix(q, q[0], q)
    with pytest.raises(TypeError, match="pass encoding"):
        attention_matrix(q, q, q, posenc.SwinBias(TokenLayout(3, 5, 1), 2))
    assert attention_matrix(q.half(), q.half(), q.half()).dtype == torch.float32
