import math

import oracles
import pytest
import torch
import torch.nn.functional as F

from posenc import TokenLayout, attend, explain
from posenc.attention.backends import tiled
from posenc.functional.buckets import irpe_index, swin_index
from posenc.terms import DenseBias, LookupBias, LowRankBias, ValueLookup

BACKENDS = ["reference", "sdpa"]
WITH_TERMS = [*BACKENDS, "tiled"]
LAYOUTS = [(2, 5, 0), (3, 3, 1), (1, 6, 2), (3, 2, 5), (5, 1, 1)]
BIASES = ["dense", "static", "query", "key", "low_rank", "all"]
HEADS, DIM = 2, 6


@pytest.fixture(autouse=True)
def many_tiles(monkeypatch):
    """A few rows each, although everything here is small."""
    monkeypatch.setattr(tiled, "CPU_SCORES", 20)


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def qkv(tokens, value_dim=DIM, dtype=torch.float64, seed=0):
    q, k = (random(2, HEADS, tokens, DIM, seed=seed + i).to(dtype) for i in (1, 2))
    return [
        x.requires_grad_() for x in (q, k, random(2, HEADS, tokens, value_dim, seed=3).to(dtype))
    ]


def tensors(kind, tokens, buckets, value_dim=DIM):
    """The leaf tensors of the terms of `kind`, batched or broadcast, shared or per head."""
    shapes = {
        "dense": [(2, 1, tokens, tokens)],
        "static": [(1, HEADS, 1, buckets)],
        "query": [(2, HEADS, tokens, buckets)],
        "key": [(2, 1, tokens, buckets)],
        "low_rank": [(1, HEADS, tokens, 3), (2, 1, tokens, 3)],
        "value": [(HEADS, buckets, value_dim)],
    }
    shapes["all"] = [shape for name in BIASES[:-1] for shape in shapes[name]]
    return [random(*shape, seed=9 + i).requires_grad_() for i, shape in enumerate(shapes[kind])]


def terms_of(kind, leaves, index):
    build = {
        "dense": lambda x: DenseBias(x),
        "static": lambda x: LookupBias(x, index),
        "query": lambda x: LookupBias(x, index),
        "key": lambda x: LookupBias(x, index.T, side="key"),
        "low_rank": lambda left, right: LowRankBias(left, right),
        "value": lambda x: ValueLookup(x, index),
    }
    if kind != "all":
        return [build[kind](*leaves)]
    a, b, c, d, left, right = leaves
    return [
        build["dense"](a),
        build["static"](b),
        build["query"](c),
        build["key"](d),
        build["low_rank"](left, right),
    ]


def swin_bucket(layout):
    return lambda i, j: oracles.swin_bucket(i, j, *layout, "separate")


def loop_bias(kind, leaves, layout):
    """`[2, HEADS, N, N]`, pair by pair."""
    if kind == "all":
        parts = [loop_bias(k, [x], layout) for k, x in zip(BIASES[:4], leaves[:4], strict=True)]
        return sum(parts) + loop_bias("low_rank", leaves[4:], layout)
    bucket = swin_bucket(layout)
    entries = {
        "dense": lambda i, j: leaves[0][..., i, j],
        "static": lambda i, j: leaves[0][..., 0, bucket(i, j)],
        "query": lambda i, j: leaves[0][..., i, bucket(i, j)],
        "key": lambda i, j: leaves[0][..., j, bucket(j, i)],
        "low_rank": lambda i, j: (leaves[0][..., i, :] * leaves[1][..., j, :]).sum(-1),
    }
    return oracles.build_bias(*layout, lambda i, j: entries[kind](i, j).expand(2, HEADS))


def index_of(layout):
    return swin_index(TokenLayout(*layout), "separate")


def assert_same(actual, expected, leaves, tolerance=1e-12):
    """Outputs and the gradients of all leaves."""
    cotangent = random(*expected.shape, seed=77)
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
    ours = torch.autograd.grad(actual, leaves, cotangent)
    theirs = torch.autograd.grad(expected, leaves, cotangent)
    for one, other in zip(ours, theirs, strict=True):
        assert other.abs().max() > 1e-3
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


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


def masks(tokens):
    """Shape -> a boolean mask with a fully masked row."""
    shapes = [(tokens, tokens), (1, tokens), (HEADS, tokens, tokens), (2, HEADS, tokens, tokens)]
    shapes += [(2, 1, 1, tokens), (1, 1, tokens, tokens)]
    keep = {shape: random(*shape, seed=5) > -0.5 for shape in shapes}
    for mask in keep.values():
        mask[..., 0] = True
        if mask.shape[-2] > 1:
            mask[..., 2, :] = False
    return keep


@pytest.mark.parametrize(
    ("backend", "kind"),
    [
        *[(backend, None) for backend in BACKENDS],
        *[(backend, kind) for backend in WITH_TERMS for kind in ("static", "query", "all")],
    ],
)
@pytest.mark.parametrize("shape", list(masks(7)), ids=str)
@pytest.mark.parametrize("boolean", [True, False])
def test_masks_equal_loops(backend, kind, shape, boolean):
    layout = (2, 3, 1)
    index = index_of(layout)
    q, k, v = qkv(7)
    mask = masks(7)[shape]
    if not boolean:
        mask = random(*shape, seed=6).masked_fill(~mask, -math.inf)
    leaves = tensors(kind, 7, index.num_buckets) if kind else []
    terms = terms_of(kind, leaves, index) if kind else []
    bias = loop_bias(kind, leaves, layout) if kind else None
    out = attend(q, k, v, terms, attn_mask=mask, backend=backend)
    expected, _ = oracles.attention(q, k, v, bias, mask)
    assert_same(out, expected, [q, k, v, *leaves])
    if shape[-2] > 1:
        assert torch.equal(out[:, :, 2], torch.zeros_like(out[:, :, 2]))


@pytest.mark.parametrize(
    ("backend", "with_terms"),
    [("reference", False), ("sdpa", False), *[(backend, True) for backend in WITH_TERMS]],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("boolean", [True, False])
def test_fully_masked_rows_are_zero_with_finite_gradients(backend, dtype, with_terms, boolean):
    q, k, v = qkv(7, dtype=dtype)
    bias = random(1, HEADS, 7, 7, dtype=dtype).requires_grad_()
    mask = torch.ones(7, 7, dtype=torch.bool)
    mask[[1, 4]] = False
    if not boolean:
        mask = torch.zeros(7, 7, dtype=dtype).masked_fill(~mask, -math.inf)
    terms = [DenseBias(bias)] if with_terms else []
    out = attend(q, k, v, terms, attn_mask=mask, backend=backend)
    assert torch.equal(out[:, :, [1, 4]], torch.zeros_like(out[:, :, [1, 4]]))
    assert out[:, :, 0].abs().min() > 0
    leaves = [q, k, v, bias] if with_terms else [q, k, v]
    grads = torch.autograd.grad(out.float().square().sum(), leaves)
    assert all(bool(grad.isfinite().all()) for grad in grads)
    assert all(not grad[:, :, [1, 4]].any() for grad in (grads[0], *grads[3:]))


@pytest.mark.parametrize("backend", ["reference", "tiled"])
def test_a_fully_masked_row_has_no_value_lookup_either(backend):
    index = index_of((2, 3, 1))
    q, k, v = qkv(7)
    table = tensors("value", 7, index.num_buckets)
    mask = torch.ones(7, 7, dtype=torch.bool)
    mask[3] = False
    out = attend(q, k, v, terms_of("value", table, index), attn_mask=mask, backend=backend)
    assert not out[:, :, 3].any()
    assert out[:, :, 2].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("head_dim", [6, 7, 32, 48, 64])
@pytest.mark.parametrize(
    "options",
    [{}, {"scale": 0.2}, {"is_causal": True}, {"attn_mask": torch.ones(5, 5).tril().bool()}],
    ids=["plain", "scale", "causal", "mask"],
)
def test_without_terms_is_sdpa_bit_for_bit(dtype, head_dim, options):
    q, k, v = (random(2, 3, 5, head_dim, seed=i).to(dtype) for i in range(3))
    expected = F.scaled_dot_product_attention(q, k, v, **options)
    assert torch.equal(attend(q, k, v, **options), expected)
    assert torch.equal(attend(q, k, v, (), backend="sdpa", **options), expected)


def test_without_terms_gradients_and_dropout_are_those_of_sdpa():
    q, k, v = qkv(5, dtype=torch.float32)
    torch.manual_seed(0)
    ours = attend(q, k, v, dropout_p=0.4)
    torch.manual_seed(0)
    theirs = F.scaled_dot_product_attention(q, k, v, dropout_p=0.4)
    assert torch.equal(ours, theirs)
    for one, other in zip(
        torch.autograd.grad(ours.sum(), [q, k, v]),
        torch.autograd.grad(theirs.sum(), [q, k, v]),
        strict=True,
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", [{}, {"is_causal": True}])
def test_grouped_queries_without_terms_equal_sdpa(backend, options):
    q = random(2, 6, 5, 4)
    k, v = random(2, 3, 5, 4, seed=1), random(2, 3, 5, 8, seed=2)
    expected = F.scaled_dot_product_attention(q, k, v, enable_gqa=True, **options)
    out = attend(q, k, v, enable_gqa=True, backend=backend, **options)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("causal", [False, True])
def test_cross_attention_without_terms_equals_sdpa(backend, causal):
    q, k, v = random(2, 3, 4, 6), random(2, 3, 7, 6, seed=1), random(2, 3, 7, 6, seed=2)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    out = attend(q, k, v, is_causal=causal, backend=backend)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


# Dropout


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


# 16 bits


def low_precision_reference(q, k, v, bias):
    """Scores and softmax in float32, inputs and output rounded to 16 bits: the best one can do."""
    scores = q.float() @ k.float().transpose(-2, -1) / q.shape[-1] ** 0.5 + bias
    return (scores.softmax(-1).to(q.dtype).float() @ v.float()).to(q.dtype)


def worst(actual, expected):
    return (actual.double() - expected).abs().max().item()


@pytest.mark.parametrize("backend", WITH_TERMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["dense", "static", "query", "low_rank"])
def test_16_bit_error_is_that_of_a_plain_reference(backend, dtype, kind):
    index = index_of((3, 5, 1))
    q, k, v = (x.detach() for x in qkv(16, dtype=dtype))
    leaves = [x.detach().float() for x in tensors(kind, 16, index.num_buckets)]
    terms = terms_of(kind, leaves, index)
    bias = loop_bias(kind, [x.double() for x in leaves], (3, 5, 1))
    exact, _ = oracles.attention(q.double(), k.double(), v.double(), bias)
    floor = worst(low_precision_reference(q, k, v, bias.float()), exact)
    out = attend(q, k, v, terms, backend=backend)
    assert out.dtype == dtype
    # A 16-bit mask rounds a bias of up to 4 by eps * 2: as much again as the plain reference.
    bound = 2 * floor + (4 * torch.finfo(dtype).eps if backend == "sdpa" else 0)
    assert worst(out, exact) <= bound


@pytest.mark.parametrize("backend", WITH_TERMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("masked", [False, True])
def test_a_row_offset_costs_no_precision(backend, dtype, masked):
    """Softmax does not see it, but 30 leaves bfloat16 a step of 1/8, unless rows are shifted."""
    q, k, v = (x.detach() for x in qkv(16, dtype=dtype))
    bias = random(1, HEADS, 16, 16, seed=8).float()
    mask = (random(16, 16, seed=9) > -1) | torch.eye(16).bool() if masked else None
    exact, _ = oracles.attention(q.double(), k.double(), v.double(), bias.double(), mask)
    shifted = DenseBias(bias + 30)
    plain = worst(attend(q, k, v, DenseBias(bias), attn_mask=mask, backend=backend), exact)
    error = worst(attend(q, k, v, shifted, attn_mask=mask, backend=backend), exact)
    assert error <= 2 * plain + 1e-4
    naive = F.scaled_dot_product_attention(q, k, v, attn_mask=(bias + 30).to(dtype))
    if not masked and dtype == torch.bfloat16:
        assert worst(naive, exact) > 3 * error


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_gradients_follow_float64(dtype):
    index = index_of((2, 5, 1))
    for kind in ("static", "query"):
        leaves = [x.detach().float().requires_grad_() for x in tensors(kind, 11, index.num_buckets)]
        exact = [x.detach().double().requires_grad_() for x in leaves]
        q, k, v = qkv(11, dtype=dtype)
        q64, k64, v64 = (x.detach().double().requires_grad_() for x in (q, k, v))
        cotangent = random(2, HEADS, 11, DIM, seed=5)
        expected = torch.autograd.grad(
            attend(q64, k64, v64, terms_of(kind, exact, index), backend="reference"),
            [q64, k64, v64, *exact],
            cotangent,
        )
        for backend in WITH_TERMS:
            out = attend(q, k, v, terms_of(kind, leaves, index), backend=backend)
            grads = torch.autograd.grad(out, [q, k, v, *leaves], cotangent.to(dtype))
            for grad, true in zip(grads, expected, strict=True):
                # Rounded factors: a few eps of the largest entry.
                assert worst(grad, true) <= 8 * torch.finfo(dtype).eps * true.abs().max()


# Autocast


@pytest.mark.parametrize("dtypes", ["fff", "bbb", "ffb"])
def test_autocast_without_terms_is_sdpa(dtypes):
    """ "ffb": queries and keys that a norm left in float32."""
    kinds = {"f": torch.float32, "b": torch.bfloat16}
    q, k, v = (x.detach().to(kinds[d]) for x, d in zip(qkv(9), dtypes, strict=True))
    with torch.autocast("cpu", torch.bfloat16):
        out = attend(q, k, v)
        expected = F.scaled_dot_product_attention(q, k, v)
    assert out.dtype == expected.dtype == torch.bfloat16
    assert torch.equal(out, expected)


@pytest.mark.parametrize("backend", WITH_TERMS)
@pytest.mark.parametrize("dtypes", ["fff", "bbb", "ffb"])
def test_autocast_with_terms(backend, dtypes):
    kinds = {"f": torch.float32, "b": torch.bfloat16}
    index = index_of((2, 4, 1))
    q, k, v = (x.detach().to(kinds[d]) for x, d in zip(qkv(9), dtypes, strict=True))
    lookup = random(1, HEADS, 1, index.num_buckets).float()
    bias = loop_bias("static", [lookup.double()], (2, 4, 1))
    exact, _ = oracles.attention(q.double(), k.double(), v.double(), bias)
    with torch.autocast("cpu", torch.bfloat16):
        out = attend(q, k, v, LookupBias(lookup, index), backend=backend)
        mask = LookupBias(lookup, index).dense().to(torch.bfloat16)
        sdpa = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    assert out.dtype == sdpa.dtype == torch.bfloat16
    assert worst(out, exact) <= 1.5 * worst(sdpa, exact)


def test_autocast_leaves_float64():
    q, k, v = (x.detach() for x in qkv(5))
    with torch.autocast("cpu", torch.bfloat16):
        out = attend(q, k, v, DenseBias(random(1, 1, 5, 5)))
        expected = F.scaled_dot_product_attention(q, k, v, attn_mask=random(1, 1, 5, 5))
    assert out.dtype == expected.dtype == torch.float64
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


def test_autocast_does_not_touch_gradients_of_terms():
    bias = random(1, HEADS, 5, 5).float().requires_grad_()
    q, k, v = (x.detach().float() for x in qkv(5))
    with torch.autocast("cpu", torch.bfloat16):
        attend(q, k, v, DenseBias(bias)).sum().backward()
    assert bias.grad.dtype == torch.float32
    assert bias.grad.any()


Q = torch.zeros(2, HEADS, 5, DIM)
BIAS = DenseBias(torch.zeros(1, 1, 5, 5))


# Backends


@pytest.mark.parametrize("call", [attend, explain])
def test_unknown_backend(call):
    with pytest.raises(ValueError, match="unknown attention backend 'flash'; there are: auto, "):
        call(Q, Q, Q, backend="flash")


def value_lookup():
    index = irpe_index(TokenLayout(1, 5), "product", 1.9, "shared")
    return ValueLookup(torch.zeros(1, index.num_buckets, DIM), index)


@pytest.mark.parametrize("call", [attend, explain])
def test_an_explicit_backend_never_falls_back(call):
    with pytest.raises(ValueError, match='backend="sdpa" does not compute this call: ValueLookup'):
        call(Q, Q, Q, value_lookup(), backend="sdpa")


@pytest.mark.parametrize("terms", [(), BIAS, [BIAS, value_lookup()]], ids=["none", "bias", "value"])
def test_explain_agrees_with_attend(terms):
    explanation = explain(Q, Q, Q, terms)
    assert explanation.reasons.keys() == {*WITH_TERMS, "lowrank", "triton", "flex"}
    assert explanation.reasons[explanation.choice] is None
    for backend, reason in explanation.reasons.items():
        if reason is None:
            assert explain(Q, Q, Q, terms, backend=backend).choice == backend
            assert attend(Q, Q, Q, terms, backend=backend).shape == Q.shape
        else:
            with pytest.raises(ValueError, match=reason):
                attend(Q, Q, Q, terms, backend=backend)
    chosen = attend(Q + 1, Q, Q + 2, terms, backend=explanation.choice)
    assert torch.equal(attend(Q + 1, Q, Q + 2, terms), chosen)


def test_explain_reads_well():
    text = str(explain(Q, Q, Q, value_lookup()))
    assert text.startswith("choice: tiled (value tables need the attention matrix")
    assert "reference: possible" in text
    assert "sdpa: ValueLookup needs the attention matrix" in text


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
