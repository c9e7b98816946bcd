"""The low-rank backend equals the reference, and refuses what it cannot do well."""

import dataclasses

import oracles
import pytest
import torch
from attend_calls import worst

import posenc
from posenc import TokenLayout, attend, explain, memo
from posenc.attention import picker
from posenc.functional.buckets import irpe_index, swin_index
from posenc.memo import Memo
from posenc.terms import DenseBias, LookupBias, LowRankBias, ValueLookup

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
    index = swin_index(layout, "none")
    q = qkv(layout)[0].detach()
    lookup = LookupBias(torch.zeros(1, 1, 1, 15), index)
    factors = torch.randn(1, 1, 6, 4)
    cases = {
        "no low-rank factors in LookupBias": (q, [lookup]),
        "no low-rank factors in a call without a bias": (q, []),
        "no low-rank factors in ValueLookup": (q, [ValueLookup(torch.zeros(1, 15, 6), index)]),
        "256": (q, [LowRankBias(torch.zeros(1, 1, 6, 260), torch.zeros(1, 1, 6, 260))]),
        "wide factors are lost in torch.bfloat16": (
            q.bfloat16(),
            [LowRankBias(factors.requires_grad_(), factors, wide=True)],
        ),
    }
    for reason, (query, terms) in cases.items():
        with pytest.raises(ValueError, match=reason):
            attend(query, query, query, terms, backend="lowrank")


def axis_terms(side, axis, layout, *, rows=None, value=False, shared=True):
    """A table along one axis, and its leaf."""
    index = irpe_index(layout, axis, 1.9, "separate")
    heads = 1 if shared else 2
    if value:
        table = torch.randn(heads, index.num_buckets, 6, dtype=torch.float64, requires_grad=True)
        return ValueLookup(table, index), table
    rows = layout.num_tokens if rows is None else rows
    batch = 2 if rows > 1 else 1
    lookup = torch.randn(
        batch, heads, rows, index.num_buckets, dtype=torch.float64, requires_grad=True
    )
    return LookupBias(lookup, index.T if side == "key" else index, side), lookup


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("axis", ["rows", "cols"])
@pytest.mark.parametrize(
    "options",
    [
        {"side": "query", "rows": 1},
        {"side": "key", "rows": 1},
        {"side": "query"},
        {"side": "key"},
        {"side": "key", "shared": False},
        {"side": "query", "value": True},
        {"side": "query", "value": True, "shared": False},
    ],
    ids=str,
)
def test_tables_along_one_axis(layout, axis, options):
    layout = TokenLayout(*layout)
    q, k, v = qkv(layout)
    term, leaf = axis_terms(layout=layout, axis=axis, **options)
    mask = torch.rand(layout.num_tokens, layout.num_tokens) > 0.2
    mask[:, -1] = True
    results = {}
    for backend in ("reference", "lowrank"):
        out = attend(q, k, v, term, attn_mask=mask, scale=0.7, backend=backend)
        results[backend] = [out, *torch.autograd.grad(out.square().sum(), [q, k, v, leaf])]
    for got, want in zip(results["lowrank"], results["reference"], strict=True):
        torch.testing.assert_close(got, want, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("on", ["k", "q", "v", "qkv"])
def test_the_cross_method_is_one_fused_call(layout, on, monkeypatch):
    layout = TokenLayout(*layout)
    irpe = oracles.randomize(
        posenc.IRPE(layout, 2, 6, method="cross", on=on, dtype=torch.float64), seed=1
    )
    q, k, v = qkv(layout)
    leaves = [q, k, v, *irpe.parameters()]
    want = attend(q, k, v, irpe(q, k, layout), backend="reference")
    calls = []
    fused = torch.nn.functional.scaled_dot_product_attention

    def count(*args, **kwargs):
        calls.append(kwargs["attn_mask"])
        return fused(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", count)
    got = attend(q, k, v, irpe(q, k, layout), backend="lowrank")
    assert calls == [None]
    torch.testing.assert_close(got, want)
    for one, other in zip(
        torch.autograd.grad(got.square().sum(), leaves),
        torch.autograd.grad(want.square().sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_minus_infinity_in_a_table():
    """As in the definition: no NaN from a zero of a one-hot, and no row of zeros."""
    layout = TokenLayout(4, 5, 1)
    index = irpe_index(layout, "rows", 1.9, "shared")
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        lookup = torch.randn(1, 1, 1, index.num_buckets)
        lookup[..., 1] = -torch.inf
        q = qkv(layout)[0].detach().to(dtype)
        results = [
            attend(q, q, q, LookupBias(lookup, index), backend=backend)
            for backend in ("lowrank", "reference")
        ]
        torch.testing.assert_close(*results, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("side", ["query", "key"])
def test_an_offset_of_tables_costs_no_precision_in_16_bit(dtype, side):
    layout = TokenLayout(7, 9, 1)
    index = irpe_index(layout, "cols", 1.9, "separate")
    lookup = torch.randn(2, 2, layout.num_tokens, index.num_buckets) + 100
    term = LookupBias(lookup, index.T if side == "key" else index, side)
    q, k, v = (x.detach().to(dtype) for x in qkv(layout))
    exact = attend(q.double(), k.double(), v.double(), term, backend="reference")
    floor = worst(attend(q, k, v, term, backend="reference"), exact)
    assert worst(attend(q, k, v, term, backend="lowrank"), exact) <= 3 * floor


def test_nothing_of_n_by_n_is_remembered_for_lines():
    memo.clear_cache()
    layout = TokenLayout(20, 20, 1)
    irpe = posenc.IRPE(layout, 2, 6, method="cross", on="qkv")
    q = torch.randn(1, 2, 401, 6)
    attend(q, q, q, irpe(q, q, layout), backend="lowrank")
    assert max(memo._sizes.values()) < 401 * 401


def test_an_axis_that_is_not_true():
    with pytest.raises(ValueError, match="axis is 'rows', but the buckets vary otherwise"):
        dataclasses.replace(swin_index(TokenLayout(2, 3), "none"), axis="rows")


def test_an_axis_that_does_not_exist():
    index = irpe_index(TokenLayout(2, 3), "rows", 1.9, "none")
    with pytest.raises(ValueError, match=r"axis must be None, .* got 'columns'"):
        dataclasses.replace(index, axis="columns")


def test_two_axes_are_not_thin():
    layout = TokenLayout(3, 4, 1)
    assert irpe_index(layout, "product", 1.9, "shared").axis is None
    assert swin_index(layout, "none").axis is None
    assert irpe_index(layout, "rows", 1.9, "shared").axis == "rows"
    assert irpe_index(layout, "cols", 1.9, "shared").T.axis == "cols"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["quadratic", "human_part"])
@pytest.mark.parametrize("layout", [(14, 14, 1), (24, 24, 2), (16, 8, 5)], ids=str)
def test_16_bit_error_is_near_that_of_a_float32_softmax(name, dtype, layout):
    """Columns rounded to 16 bit alone would be garbage: the products reach 1000."""
    layout = TokenLayout(*layout)
    encoding = build(name, layout)
    q, k, v = (x.detach().to(dtype) for x in qkv(layout))
    with torch.no_grad():
        terms = encoding(q.double(), k.double(), layout)
        exact = attend(q.double(), k.double(), v.double(), terms, backend="reference")
        terms = encoding.float()(q, k, layout)
        floor = worst(attend(q, k, v, terms, backend="reference"), exact)
        error = worst(attend(q, k, v, terms, backend="lowrank"), exact)
        (term,) = terms
        naive = (term.left.to(dtype) @ term.right.to(dtype).transpose(-2, -1)).float()
        naive = worst(attend(q, k, v, DenseBias(naive), backend="reference"), exact)
    assert error <= 2 * floor
    if name == "quadratic" and dtype == torch.bfloat16:
        assert naive > 10 * error


def test_float16_does_not_overflow():
    layout = TokenLayout(32, 32, 1)
    encoding = posenc.Quadratic(layout, 2, alpha=70.0)  # products up to 70 * 2 * 16 ** 2
    q, k, v = (x.detach().half() for x in qkv(layout))
    with torch.no_grad():
        terms = encoding(q, k, layout)
        assert (terms[0].left.abs().max() / 6**-0.5) > 65504
        out = attend(q, k, v, terms, backend="lowrank")
        expected = attend(q, k, v, terms, backend="reference")
    assert worst(out, expected.double()) < 0.02


def test_the_quoted_precision_of_the_quadratic_encoding():
    """32x32 patches and alpha 10, as docs/performance.md says."""
    torch.manual_seed(0)
    layout = TokenLayout(32, 32, 1)
    encoding = posenc.Quadratic(layout, 2, alpha=10.0)
    q = torch.randn(1, 2, layout.num_tokens, 8)
    grads = {}
    for backend, dtype in (("reference", torch.float64), ("tiled", None), ("lowrank", None)):
        own = encoding.to(dtype or torch.float32)
        x = q.to(dtype or torch.float32)
        out = attend(x, x, x, own(x, x, layout), backend=backend)
        grads[backend] = torch.autograd.grad(out.square().sum(), own.alpha)[0].double()
    exact = grads["reference"]
    assert (grads["tiled"] - exact).norm() < 1e-6 * exact.norm()
    assert (grads["lowrank"] - exact).norm() > 0.5 * exact.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_gradients_of_factors_that_are_not_wide(dtype):
    layout = TokenLayout(16, 8, 1)
    encoding = build("human_part", layout, torch.float32)
    grads = {}
    for backend in ("lowrank", "reference", "float64"):
        own = torch.float64 if backend == "float64" else dtype
        torch.manual_seed(0)
        q, k, v = (x.detach().to(dtype).to(own) for x in qkv(layout))
        encoding.to(torch.float64 if backend == "float64" else torch.float32)
        out = attend(
            q, k, v, encoding(q, k, layout), backend=backend.replace("float64", "reference")
        )
        grads[backend] = torch.autograd.grad(out.double().square().sum(), encoding.parameters())
    for got, plain, exact in zip(
        grads["lowrank"], grads["reference"], grads["float64"], strict=True
    ):
        bound = 3 * worst(plain, exact) + 4 * torch.finfo(dtype).eps * exact.abs().max()
        assert worst(got, exact) <= bound


@pytest.mark.parametrize(
    ("tokens", "case", "training", "choice"),
    [
        (625, "human_part", True, "lowrank"),
        (625, "quadratic", True, "tiled"),
        (625, "swin", True, "tiled"),
        (625, "irpe", True, "tiled"),
        (625, "irpe", False, "tiled"),
        (625, "swin", False, "sdpa"),
        (625, "quadratic", False, "sdpa"),
        (196, "swin", True, "tiled"),
        (144, "irpe", True, "tiled"),
        (144, "swin", True, "reference"),
        (100, "irpe", True, "reference"),
        (100, "irpe", False, "sdpa"),
        (625, "irpe on=qkv", True, "tiled"),
        (49, "irpe on=qkv", False, "tiled"),
        (49, "irpe on=qkv method=cross", False, "lowrank"),
        (49, "irpe on=qkv method=cross", True, "tiled"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_auto_takes(tokens, case, training, choice, dtype):
    side = int(tokens**0.5)
    layout = TokenLayout(side, side)
    name, *options = case.split()
    encoding = posenc.create_encoding(
        name, layout=layout, num_heads=2, head_dim=6, **dict(o.split("=") for o in options)
    )
    encoding.train(training)
    q = torch.randn(2, 2, tokens, 6, dtype=dtype)
    if dtype == torch.bfloat16 and choice == "lowrank" and "cross" not in case:
        choice = "tiled"  # three times the columns
    with torch.set_grad_enabled(training):
        assert explain(q, q, q, encoding(q, q, layout)).choice == choice


def test_auto_keeps_no_mask_beyond_the_memory_for_masks(monkeypatch):
    monkeypatch.setattr(Memo, "LIMIT_BYTES", 1000)
    monkeypatch.setattr(picker, "MASK_BYTES", 1000)
    layout = TokenLayout(20, 20)
    q = torch.randn(2, 2, 400, 6)
    with torch.no_grad():
        for name, choice in (("human_part", "lowrank"), ("swin", "tiled"), ("quadratic", "tiled")):
            encoding = posenc.create_encoding(name, layout=layout, num_heads=2, head_dim=6).eval()
            assert explain(q, q, q, encoding(q, q, layout)).choice == choice


@pytest.mark.parametrize(
    ("dtype", "batch", "choice"),
    [(torch.float32, 2, "lowrank"), (torch.bfloat16, 2, "sdpa"), (torch.float32, 1, "sdpa")],
)
def test_wide_factors_of_each_image_are_columns_where_nothing_trains_them(dtype, batch, choice):
    """16 bits do not hold them, and a mask for all images is cheap."""
    q = torch.randn(2, 2, 30, 16, dtype=dtype)
    left, right = torch.randn(batch, 2, 30, 5), torch.randn(1, 1, 30, 5)
    with torch.no_grad():
        assert explain(q, q, q, LowRankBias(left, right, wide=True)).choice == choice
