"""The low-rank backend equals the reference, and refuses what it cannot do well."""

import oracles
import pytest
import torch

import posenc
from posenc import TokenLayout, attend, explain
from posenc.terms import LookupBias, LowRankBias, ValueLookup

LAYOUTS = [(3, 5, 0), (7, 4, 1), (1, 6, 2), (5, 5, 5)]


def build(name, layout, dtype=torch.float64):
    encoding = posenc.create_encoding(
        name, layout=layout, num_heads=2, head_dim=6, strength=1.3, dtype=dtype
    )
    with torch.no_grad():
        for parameter in encoding.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return encoding


def qkv(layout, value_dim=6, dtype=torch.float64):
    shape = (2, 2, layout.num_tokens)
    return [
        torch.randn(*shape, width, dtype=dtype, requires_grad=True) for width in (6, 6, value_dim)
    ]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("name", ["quadratic", "human_part"])
@pytest.mark.parametrize("value_dim", [6, 3, 21])
@pytest.mark.parametrize("mask", [None, "bool", "float"])
def test_equals_the_reference(name, layout, value_dim, mask):
    layout = TokenLayout(*layout)
    encoding = build(name, layout)
    q, k, v = qkv(layout, value_dim)
    tokens = layout.num_tokens
    if mask == "bool":
        mask = torch.rand(2, 1, tokens, tokens) > 0.3
        mask[0, :, 0] = False  # a fully masked row
    elif mask == "float":
        mask = torch.randn(tokens, tokens, dtype=torch.float64)
    leaves = [q, k, v, *encoding.parameters()]
    results = {}
    for backend in ("reference", "lowrank"):
        out = attend(q, k, v, encoding(q, k, layout), attn_mask=mask, scale=0.7, backend=backend)
        grads = torch.autograd.grad(out.square().sum(), leaves)
        results[backend] = [out, *grads]
    for got, want in zip(results["lowrank"], results["reference"], strict=True):
        assert got.isfinite().all()
        torch.testing.assert_close(got, want, atol=1e-9, rtol=1e-9)


def test_sums_several_terms():
    layout = TokenLayout(4, 3, 1)
    q, k, v = qkv(layout)
    terms = [t for n in ("quadratic", "human_part") for t in build(n, layout)(q, k, layout)]
    bias = sum(term.dense() for term in terms)
    expected, _ = oracles.attention(q, k, v, bias)
    torch.testing.assert_close(attend(q, k, v, terms, backend="lowrank"), expected)


@pytest.mark.parametrize("name", ["quadratic", "human_part"])
def test_float32_error_is_bounded(name):
    """eps times the largest product of the factors, the bound that the documentation states."""
    layout = TokenLayout(14, 14, 1)
    encoding = build(name, layout)
    q, k, v = (t.detach() for t in qkv(layout))
    expected = attend(q, k, v, encoding(q, k, layout), backend="reference")
    encoding.float()
    q, k, v = q.float(), k.float(), v.float()
    (term,) = encoding(q, k, layout)
    span = (term.left.abs().amax(-2) * term.right.abs().amax(-2)).sum(-1).max().item()
    error = (attend(q, k, v, term, backend="lowrank") - expected).abs().max().item()
    assert error < 4 * torch.finfo(torch.float32).eps * max(span, 8.0)


def test_dropout_drops():
    layout = TokenLayout(4, 3)
    q, k, v = qkv(layout)
    terms = build("human_part", layout)(q, k, layout)
    torch.manual_seed(0)
    dropped = attend(q, k, v, terms, dropout_p=0.5, backend="lowrank")
    assert not torch.allclose(dropped, attend(q, k, v, terms, backend="lowrank"))


def test_per_image_factors():
    layout = TokenLayout(2, 4)
    q, k, v = qkv(layout)
    left, right = torch.randn(2, 2, 2, 8, 3, dtype=torch.float64)
    term = LowRankBias(left, right)
    torch.testing.assert_close(
        attend(q, k, v, term, backend="lowrank"), attend(q, k, v, term, backend="reference")
    )


def test_rejects_with_the_reason():
    layout = TokenLayout(2, 3)
    index = posenc.functional.pairs.swin_index(layout, "none")
    q = qkv(layout)[0].detach()
    lookup = LookupBias(torch.zeros(1, 1, 1, 15), index)
    factors = torch.randn(1, 1, 6, 4)
    cases = {
        "no low-rank factors in LookupBias": (q, [lookup]),
        "no low-rank factors in a call without a bias": (q, []),
        "ValueLookup needs the attention": (q, [ValueLookup(torch.zeros(1, 15, 6), index)]),
        "256": (q, [LowRankBias(torch.zeros(1, 1, 6, 260), torch.zeros(1, 1, 6, 260))]),
        "more than torch.bfloat16": (q.bfloat16(), [LowRankBias(factors, factors, wide=True)]),
    }
    for reason, (query, terms) in cases.items():
        with pytest.raises(ValueError, match=reason):
            attend(query, query, query, terms, backend="lowrank")


def test_auto_trains_thin_biases_without_a_mask():
    layout = TokenLayout(25, 25)
    q = torch.randn(1, 2, 625, 6)
    encoding = build("human_part", layout, torch.float32)
    assert explain(q, q, q, encoding(q, q, layout)).choice == "lowrank"
    with torch.no_grad():  # in eval the dense mask is remembered
        assert explain(q, q, q, encoding.eval()(q, q, layout)).choice == "sdpa"
    small = TokenLayout(5, 5)
    assert (
        explain(
            q[:, :, :25],
            q[:, :, :25],
            q[:, :, :25],
            encoding.train()(q[:, :, :25], q[:, :, :25], small),
        ).choice
        == "reference"
    )
