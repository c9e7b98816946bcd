"""A purely positional attention of a static bias is remembered as a whole in eval on the CPU."""

import layouts
import oracles
import pytest
import torch

from posenc import ConViT, TokenLayout, attend, explain
from posenc.functional.buckets import swin_index
from posenc.pairs import PairIndex
from posenc.term_maps import with_memo
from posenc.terms import ContentScale, LookupBias


def convit(layout):
    encoding = ConViT(TokenLayout(*layout), 2, dtype=torch.float64)
    return oracles.randomize(encoding).eval()


def remembered(encoding, dtype=torch.float64):
    mixture = encoding._static._entry[2][0]
    return mixture.terms[1].memo.get(("attention", dtype))


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_equals_the_reference_before_and_after_a_change(layout):
    encoding, tokens = convit(layout), TokenLayout(*layout)
    q, k, v, _ = (x.detach() for x in oracles.random_qkv(tokens.num_tokens))
    with torch.no_grad():
        for _ in range(2):
            for _ in range(2):
                terms = encoding(q, k, tokens)
                expected = attend(q, k, v, terms, backend="reference")
                torch.testing.assert_close(attend(q, k, v, terms, backend="sdpa"), expected)
            assert remembered(encoding).shape == (1, 2, tokens.num_tokens, tokens.num_tokens)
            encoding.weight.data.mul_(-0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_is_rounded_once(dtype):
    encoding, tokens = convit((2, 5, 1)), TokenLayout(2, 5, prefix=1)
    q, k, v, _ = (x.detach() for x in oracles.random_qkv(11))
    with torch.no_grad():
        expected = attend(q, k, v, encoding(q, k, tokens))
        q, k, v = (x.to(dtype) for x in (q, k, v))
        out = attend(q, k, v, encoding(q, k, tokens), backend="sdpa")
    assert out.dtype == dtype
    close = 1e-5 if dtype == torch.float32 else 0.03
    torch.testing.assert_close(out.double(), expected, atol=close, rtol=close)


def test_a_mask_or_dropout_is_not_forgotten():
    encoding, tokens = convit((2, 5, 1)), TokenLayout(2, 5, prefix=1)
    q, k, v, _ = (x.detach() for x in oracles.random_qkv(11))
    mask = torch.ones(11, 11, dtype=torch.bool).tril()
    with torch.no_grad():
        terms = encoding(q, k, tokens)
        attend(q, k, v, terms, backend="sdpa")
        expected = attend(q, k, v, terms, attn_mask=mask, backend="reference")
        out = attend(q, k, v, terms, attn_mask=mask, backend="sdpa")
        torch.testing.assert_close(out, expected)
        assert (attend(q, k, v, terms, backend="sdpa", dropout_p=1.0) == 0).all()


def test_one_table_for_all_heads():
    index = PairIndex(TokenLayout(1, 3), torch.tensor([[0, 1, 2, 1, 0]]), num_buckets=3)
    lookup = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)[None, None, None]
    terms = (ContentScale(0.0), with_memo(LookupBias(lookup, index)))
    q, k, v, _ = (x.detach() for x in oracles.random_qkv(3))
    expected = attend(q, k, v, terms, backend="reference")
    torch.testing.assert_close(attend(q, k, v, terms, backend="sdpa"), expected)
    assert terms[1].memo.get(("attention", torch.float64)).shape == (1, 1, 3, 3)


def test_explain_names_no_kernel_of_attention():
    layout = TokenLayout(2, 5, prefix=1)
    q, k, v, _ = (x.detach() for x in oracles.random_qkv(11))
    bias = with_memo(LookupBias(torch.zeros(1, 2, 1, 28), swin_index(layout, "none")))
    assert explain(q, k, v, (ContentScale(0.0), bias), backend="sdpa").sdpa_kernel is None
    assert explain(q, k, v, (bias,), backend="sdpa").sdpa_kernel is not None
