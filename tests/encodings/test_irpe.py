import golden_cases
import oracles
import pytest
import torch

from posenc import IRPE, TokenLayout, attend, explain

METHOD = golden_cases.IRPE_METHODS
BACKENDS = ["reference", "sdpa", "tiled"]
LAYOUTS = [(2, 5, 0), (4, 3, 1), (1, 6, 2), (3, 2, 5)]
FORMS = [
    {"mode": "contextual", "on": "qkv", "share_heads": True},
    {"mode": "contextual", "on": "qv", "share_heads": False},
    {"mode": "contextual", "on": "k", "share_heads": False},
    {"mode": "bias", "on": "qk", "share_heads": False},
    {"mode": "bias", "on": "q", "share_heads": True},
]


def build(layout, *, seed=0, heads=2, head_dim=4, **options):
    irpe = IRPE(TokenLayout(*layout), heads, head_dim, dtype=torch.float64, **options)
    return oracles.randomize(irpe, seed)


def bias_of(terms):
    return sum(term.dense() for term in terms if hasattr(term, "dense"))


@pytest.mark.parametrize("backend", [*BACKENDS, "lowrank"])
@pytest.mark.parametrize("name", golden_cases.names("irpe_attn"))
def test_attention_equals_the_published_code(name, backend):
    golden = golden_cases.case(name)
    irpe, layout = golden_cases.irpe_of(golden)
    scale = golden.hyperparameters["scale"]
    q, k, v = (golden.leaf(name) for name in "qkv")
    terms = irpe(q, k, layout, scale=scale)
    cannot = {"sdpa": "v" in irpe.on, "lowrank": irpe.method != "cross"}
    if cannot.get(backend):
        with pytest.raises(ValueError, match="Lookup"):
            attend(q, k, v, terms, scale=scale, backend=backend)
        return
    out = attend(q, k, v, terms, scale=scale, backend=backend)
    torch.testing.assert_close(out, golden["out"], **golden.close)
    out.backward(golden["grad_out"])
    grads = {"q": q.grad, "k": k.grad, "v": v.grad}
    grads |= {name: parameter.grad for name, parameter in irpe.named_parameters()}
    expected = {
        name.removeprefix("grad_"): array
        for name, array in golden.arrays.items()
        if name.startswith("grad_") and name != "grad_out"
    }
    assert grads.keys() == expected.keys()
    for key, grad in expected.items():
        torch.testing.assert_close(
            grads[key], grad, **golden.close, msg=lambda m, k=key: f"{k}: {m}"
        )


@pytest.mark.parametrize("on", ["v", "qkv"])
@pytest.mark.parametrize(("dropout_p", "choice"), [(0.0, "tiled"), (0.1, "reference")])
def test_auto_takes_a_backend_that_has_the_attention_matrix(on, dropout_p, choice):
    irpe, layout = build((2, 5, 1), on=on), TokenLayout(2, 5, prefix=1)
    q, k, v, _ = oracles.random_qkv(11)
    terms = irpe(q, k, layout)
    report = explain(q, k, v, terms, dropout_p=dropout_p)
    assert report.choice == choice
    assert report.reasons["reference"] is None
    assert "attention matrix" in report.reasons["sdpa"]


@pytest.mark.parametrize("name", golden_cases.names("irpe_attn"))
def test_bias_equals_the_published_code(name):
    golden = golden_cases.case(name)
    irpe, layout = golden_cases.irpe_of(golden)
    bias = bias_of(irpe(golden["q"], golden["k"], layout, scale=golden.hyperparameters["scale"]))
    expected = golden.arrays.get("rpe_k", 0)
    if "rpe_q" in golden.arrays:
        expected = expected + golden["rpe_q"].transpose(-2, -1)
    expected = torch.as_tensor(expected, dtype=torch.float64)
    bias = torch.as_tensor(bias, dtype=torch.float64).expand(expected.shape)
    torch.testing.assert_close(bias, expected, **golden.close)


def compare_with_oracle(irpe, layout, scale=None, seed=1):
    q, k, v, cotangent = oracles.random_qkv(
        oracles.num_tokens(*layout), irpe.num_heads, irpe.head_dim, seed=seed
    )
    tables = dict(irpe.named_parameters())
    expected = oracles.irpe(
        q, k, v, tables, *layout,
        mode=irpe.mode, method=irpe.method, ratio=irpe.ratio, prefix_pairs=irpe.prefix_pairs,
        scale=scale,
    )  # fmt: skip
    leaves = [q, k, v, *tables.values()]
    wanted = torch.autograd.grad(expected, leaves, cotangent)
    for backend in BACKENDS if "v" not in irpe.on else BACKENDS[:1]:
        terms = irpe(q, k, TokenLayout(*layout), scale=scale)
        out = attend(q, k, v, terms, scale=scale, backend=backend)
        torch.testing.assert_close(out, expected, atol=1e-10, rtol=0)
        for grad, want in zip(torch.autograd.grad(out, leaves, cotangent), wanted, strict=True):
            torch.testing.assert_close(grad, want, atol=1e-10, rtol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", METHOD.values())
@pytest.mark.parametrize("form", FORMS, ids=lambda f: "-".join(str(v) for v in f.values()))
def test_equals_the_oracle(layout, method, form):
    compare_with_oracle(build(layout, method=method, **form), layout)


@pytest.mark.parametrize("prefix_pairs", ["none", "separate"])
@pytest.mark.parametrize("layout", [(2, 5, 1), (3, 2, 2), (1, 6, 5)])
@pytest.mark.parametrize("form", FORMS[:4], ids=lambda f: "-".join(str(v) for v in f.values()))
@pytest.mark.parametrize("method", ["product", "cross"])
def test_prefix_pairs_equal_the_oracle(layout, method, form, prefix_pairs):
    compare_with_oracle(build(layout, method=method, prefix_pairs=prefix_pairs, **form), layout)


@pytest.mark.parametrize("ratio", [0.5, 1.0, 3.0])
def test_other_ratios_equal_the_oracle(ratio):
    compare_with_oracle(build((7, 4, 1), method="product", ratio=ratio), (7, 4, 1))


@pytest.mark.parametrize("mode", ["contextual", "bias"])
def test_contextual_terms_use_the_scale_of_the_attention(mode):
    """A bias is not scaled."""
    compare_with_oracle(build((2, 3, 1), mode=mode, on="qk"), (2, 3, 1), scale=0.9)


@pytest.mark.parametrize("method", ["product", "cross"])
@pytest.mark.parametrize("used", [(7, 4, 1), (5, 2, 1)])
def test_buckets_are_recomputed_on_another_grid(method, used):
    """Equal token counts included: 2x5 and 5x2."""
    compare_with_oracle(build((2, 5, 1), method=method, on="qk"), used)


@pytest.mark.parametrize(("on", "key_row", "query_row"), [("k", 0, 1), ("q", 1, 0)])
@pytest.mark.parametrize("method", ["product", "cross"])
def test_orientation(method, on, key_row, query_row):
    """The bucket of offset (+1, 0) is the query one row below on k, the key one row below on q."""
    irpe = IRPE(TokenLayout(2, 5), 1, 4, mode="bias", method=method, on=on, dtype=torch.float64)
    with torch.no_grad():
        if method == "product":
            getattr(irpe, f"table_{on}")[0, 4 * 7 + 3] = 1.0
        else:
            getattr(irpe, f"table_{on}_rows")[0, 4] = 1.0
    q, k, _, _ = oracles.random_qkv(10, heads=1)
    bias = bias_of(irpe(q, k, TokenLayout(2, 5))).reshape(2, 5, 2, 5)
    block = torch.eye(5, dtype=torch.float64) if method == "product" else 1.0
    expected = torch.zeros(2, 5, 2, 5, dtype=torch.float64)
    expected[query_row, :, key_row, :] = block
    assert torch.equal(bias, expected)


@pytest.mark.parametrize("method", ["euclidean", "quantized"])
def test_distances_never_train_the_lower_half_of_their_table(method):
    irpe = build((4, 5, 0), method=method, on="qkv")
    q, k, v, cotangent = oracles.random_qkv(20)
    attend(q, k, v, irpe(q, k, TokenLayout(4, 5))).backward(cotangent)
    grads = torch.cat([irpe.table_q.grad[0], irpe.table_k.grad[0], irpe.table_v.grad[0].T])
    assert irpe.table_k.shape[-1] == 7
    assert (grads[:, :3] == 0).all()
    assert (grads[:, 3:] != 0).any(0).all()


def test_default_is_the_best_single_choice_of_the_paper():
    irpe = IRPE(TokenLayout(14, 14, prefix=1), 6, 64)
    assert (irpe.mode, irpe.method, irpe.on) == ("contextual", "product", "k")
    assert {name: tuple(p.shape) for name, p in irpe.named_parameters()} == {"table_k": (1, 64, 50)}


@pytest.mark.parametrize(
    ("options", "prefix", "shapes"),
    [
        ({"on": "qkv"}, 0, {"table_q": (1, 8, 49), "table_k": (1, 8, 49), "table_v": (1, 49, 8)}),
        ({"on": "kv", "share_heads": False}, 2, {"table_k": (3, 8, 50), "table_v": (3, 50, 8)}),
        ({"mode": "bias", "share_heads": False}, 1, {"table_k": (3, 50)}),
        ({"mode": "bias", "method": "cross"}, 1, {"table_k_rows": (1, 8), "table_k_cols": (1, 8)}),
        ({"method": "cross", "on": "v"}, 0, {"table_v_rows": (1, 7, 8), "table_v_cols": (1, 7, 8)}),
        ({"method": "euclidean", "prefix_pairs": "separate"}, 1, {"table_k": (1, 8, 10)}),
        ({"method": "quantized", "prefix_pairs": "none"}, 1, {"table_k": (1, 8, 7)}),
        ({"prefix_pairs": "separate"}, 0, {"table_k": (1, 8, 49)}),
    ],
)
def test_table_names_and_shapes(options, prefix, shapes):
    irpe = IRPE(TokenLayout(3, 5, prefix), 3, 8, **options)
    assert {name: tuple(p.shape) for name, p in irpe.named_parameters()} == shapes


@pytest.mark.parametrize("method", METHOD.values())
@pytest.mark.parametrize("init", ["zero", "paper"])
def test_no_effect_at_the_start_and_a_gradient(method, init):
    """The paper starts at zero, too."""
    layout = TokenLayout(2, 5, prefix=1)
    irpe = IRPE(layout, 2, 4, method=method, on="qkv", init=init, dtype=torch.float64)
    q, k, v, cotangent = oracles.random_qkv(11)
    out = attend(q, k, v, irpe(q, k, layout))
    torch.testing.assert_close(out, attend(q, k, v), atol=1e-14, rtol=0)
    out.backward(cotangent)
    assert all((parameter.grad != 0).any() for parameter in irpe.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "diagonal"}, r"method.*product.*cross.*euclidean.*quantized.*'diagonal'"),
        ({"mode": "both"}, r"mode.*contextual.*bias.*'both'"),
        ({"on": "x"}, r"on.*'x'"),
        ({"on": ""}, r"on.*''"),
        ({"on": "kk"}, r"on.*'kk'"),
        ({"prefix_pairs": "two"}, r"prefix_pairs.*none.*shared.*separate.*'two'"),
        ({"init": "ones"}, r"init.*zero.*paper.*'ones'"),
        ({"mode": "bias", "on": "v"}, r"bias.*v.*does not exist"),
        ({"mode": "bias", "on": "qkv"}, r"bias.*v.*does not exist"),
        ({"ratio": 0.0}, r"ratio.*0\.0"),
        ({"ratio": -1.9}, r"ratio.*-1\.9"),
    ],
)
def test_refuses_what_does_not_exist(options, message):
    with pytest.raises(ValueError, match=message):
        IRPE(TokenLayout(2, 3), 2, 4, **options)


def test_refuses_tokens_that_the_layout_does_not_have():
    irpe = build((2, 5, 1))
    q, k, _, _ = oracles.random_qkv(12)
    with pytest.raises(ValueError, match=r"11 tokens.*12"):
        irpe(q, k, TokenLayout(2, 5, prefix=1))


def test_refuses_other_heads():
    irpe = build((2, 5, 1), heads=3, share_heads=False)
    q, k, _, _ = oracles.random_qkv(11, heads=2)
    with pytest.raises(ValueError, match=r"num_heads=3.*2 heads"):
        irpe(q, k, TokenLayout(2, 5, prefix=1))
