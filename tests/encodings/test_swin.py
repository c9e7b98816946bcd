import golden_cases
import layouts
import oracles
import pytest
import torch
import torch.nn.functional as F

from posenc import SwinBias, TokenLayout, attend

BACKENDS = ["reference", "sdpa"]
LAYOUTS = [*layouts.LAYOUTS, (1, 1, 2)]


def build(layout, *, seed=0, heads=2, **options):
    return oracles.randomize(
        SwinBias(TokenLayout(*layout), heads, dtype=torch.float64, **options), seed
    )


def project(x, weights, heads):
    """q, k, v `[B, heads, N, head_dim]` of a packed linear layer."""
    qkv = F.linear(x, weights["p.qkv.weight"], weights["p.qkv.bias"])
    return qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)


def join(out, weights):
    return F.linear(
        out.transpose(1, 2).flatten(2), weights["p.proj.weight"], weights["p.proj.bias"]
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", golden_cases.names("swin_window"))
def test_window_attention_equals_the_published_code(name, backend):
    golden = golden_cases.case(name)
    options = golden.hyperparameters
    weights = {key: golden.leaf(key) for key in golden.arrays if key.startswith("p.")}
    table_key = "p.relative_position_bias_table"
    layout = TokenLayout(*options["window_h_w"])
    swin = SwinBias(layout, options["heads"], options["head_dim"], dtype=torch.float64)
    swin.load_state_dict({"table": golden[table_key].T})
    x = golden.leaf("x")
    mask = golden.arrays.get("mask")
    if mask is not None:
        mask = mask.repeat(len(x) // len(mask), 1, 1)[:, None]
    q, k, v = project(x, weights, options["heads"])
    terms = swin(q, k, layout, scale=options["scale"])
    (term,) = terms
    torch.testing.assert_close(term.dense()[0], golden["bias"], **golden.close)
    out = attend(q, k, v, terms, attn_mask=mask, scale=options["scale"], backend=backend)
    out = join(out, weights)
    torch.testing.assert_close(out, golden["out"], **golden.close)
    out.backward(golden["grad_out"])
    grads = {key.removeprefix("p."): weight.grad for key, weight in weights.items()}
    grads["relative_position_bias_table"] = swin.table.grad.T
    for key, grad in grads.items():
        torch.testing.assert_close(grad, golden[f"grad.{key}"], **golden.close)
    torch.testing.assert_close(x.grad, golden["grad_x"], **golden.close)


@pytest.mark.parametrize("backend", BACKENDS)
def test_person_crop_with_cls_equals_the_published_code(backend):
    golden = golden_cases.case("transreid_relative_4x2")
    heads = golden.hyperparameters["heads"]
    layout = TokenLayout(4, 2, prefix=1)
    swin = SwinBias(layout, heads, prefix_pairs="none", dtype=torch.float64)
    swin.load_state_dict({"table": golden["p.relative_position_bias_table"].T})
    q, k, v = project(golden["x"], golden.arrays, heads)
    out = join(attend(q, k, v, swin(q, k, layout), backend=backend), golden.arrays)
    torch.testing.assert_close(out, golden["out"], **golden.close)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("prefix_pairs", ["none", "shared", "separate"])
def test_equals_the_oracle(layout, prefix_pairs):
    swin = build(layout, prefix_pairs=prefix_pairs)
    q, k, v, cotangent = oracles.random_qkv(oracles.num_tokens(*layout))
    expected_bias = oracles.swin_bias(swin.table, *layout, prefix_pairs)
    expected, _ = oracles.attention(q, k, v, expected_bias)
    leaves = [q, k, v, swin.table]
    wanted = torch.autograd.grad(expected, leaves, cotangent)
    for backend in BACKENDS:
        terms = swin(q, k, TokenLayout(*layout))
        torch.testing.assert_close(terms[0].dense(), expected_bias, atol=1e-14, rtol=0)
        out = attend(q, k, v, terms, backend=backend)
        torch.testing.assert_close(out, expected, atol=1e-10, rtol=0)
        for grad, want in zip(torch.autograd.grad(out, leaves, cotangent), wanted, strict=True):
            torch.testing.assert_close(grad, want, atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_masks_go_with_the_bias_and_a_masked_row_gives_zero(kind, backend):
    layout = (2, 5, 1)
    swin = build(layout)
    q, k, v, cotangent = oracles.random_qkv(11)
    generator = torch.Generator().manual_seed(3)
    mask = torch.rand(2, 1, 11, 11, generator=generator) > 0.3
    mask[0, :, 4] = False
    if kind == "float":
        noise = torch.randn(2, 1, 11, 11, generator=generator, dtype=torch.float64)
        mask = noise.masked_fill(~mask, float("-inf"))
    bias = oracles.swin_bias(swin.table, *layout)
    expected, _ = oracles.attention(q, k, v, bias, mask)
    out = attend(q, k, v, swin(q, k, TokenLayout(*layout)), attn_mask=mask, backend=backend)
    assert (out[0, :, 4] == 0).all()
    torch.testing.assert_close(out, expected, atol=1e-10, rtol=0)
    leaves = [q, k, v, swin.table]
    wanted = torch.autograd.grad(expected, leaves, cotangent)
    for grad, want in zip(torch.autograd.grad(out, leaves, cotangent), wanted, strict=True):
        torch.testing.assert_close(grad, want, atol=1e-10, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_inference_forgets_what_is_out_of_date(backend):
    """Other layouts of equal count, and values that changed without a version."""
    swin = build((2, 5, 1)).eval()
    q, k, v, _ = (tensor.detach() for tensor in oracles.random_qkv(11))
    for grid in [(2, 5), (5, 2), (2, 5), "changed"]:
        if grid == "changed":
            grid = (2, 5)
            swin.table.data.mul_(-2.0)
        table = oracles.resample_offsets(swin.table.detach(), (2, 5), grid)
        expected, _ = oracles.attention(q, k, v, oracles.swin_bias(table, *grid, 1))
        layout = TokenLayout(*grid, prefix=1)
        with torch.inference_mode():
            out = attend(q, k, v, swin(q, k, layout), backend=backend)
        torch.testing.assert_close(out, expected, atol=1e-6, rtol=0)


def test_orientation():
    """Entry (drow, dcol) = (+1, -2): the query is one row below and two columns left."""
    swin = SwinBias(TokenLayout(2, 5), 1, dtype=torch.float64)
    with torch.no_grad():
        swin.table.reshape(3, 9)[1 + 1, -2 + 4] = 1.0
    q, k, _, _ = oracles.random_qkv(10, heads=1)
    bias = swin(q, k, TokenLayout(2, 5))[0].dense().reshape(2, 5, 2, 5)
    found = {tuple(pair) for pair in bias.nonzero().tolist()}
    assert found == {(1, column, 0, column + 2) for column in range(3)}


@pytest.mark.parametrize("used", [(7, 4, 2), (5, 2, 2), (1, 3, 2)])
@pytest.mark.parametrize("prefix_pairs", ["none", "separate"])
def test_table_is_resampled_on_another_grid(used, prefix_pairs):
    swin = build((2, 5, 2), prefix_pairs=prefix_pairs)
    grid = oracles.resample_offsets(swin.table[:, :27], (2, 5), used[:2])
    table = torch.cat([grid, swin.table[:, 27:]], -1)
    expected = oracles.swin_bias(table, *used, prefix_pairs)
    q, k, _, _ = oracles.random_qkv(oracles.num_tokens(*used))
    stored = swin.table.detach().clone()
    bias = swin(q, k, TokenLayout(*used))[0].dense()
    torch.testing.assert_close(bias, expected, atol=1e-6, rtol=0)
    cotangent = torch.randn(bias.shape, generator=torch.Generator().manual_seed(0)).double()
    grads = [torch.autograd.grad(b, swin.table, cotangent)[0] for b in (bias, expected)]
    torch.testing.assert_close(*grads, atol=1e-6, rtol=0)
    assert torch.equal(swin.table, stored)


@pytest.mark.parametrize(
    ("prefix", "prefix_pairs", "entries"),
    [(0, "none", 27), (1, "none", 27), (0, "separate", 27), (5, "shared", 28), (1, "separate", 30)],
)
def test_table_shape(prefix, prefix_pairs, entries):
    swin = SwinBias(TokenLayout(2, 5, prefix), 3, prefix_pairs=prefix_pairs)
    assert {n: tuple(p.shape) for n, p in swin.named_parameters()} == {"table": (3, entries)}


def test_no_effect_at_the_start_and_a_gradient():
    layout = TokenLayout(2, 5, prefix=1)
    swin = SwinBias(layout, 2, dtype=torch.float64)
    q, k, v, cotangent = oracles.random_qkv(11)
    out = attend(q, k, v, swin(q, k, layout))
    torch.testing.assert_close(out, attend(q, k, v), atol=1e-14, rtol=0)
    out.backward(cotangent)
    assert (swin.table.grad != 0).all()


def test_the_start_of_the_paper_is_small_and_not_zero():
    torch.manual_seed(0)
    table = SwinBias(TokenLayout(14, 14), 8, init="paper").table
    assert 0.015 < table.std() < 0.025
    assert (table != 0).any(1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prefix_pairs": "two"}, r"prefix_pairs.*none.*shared.*separate.*'two'"),
        ({"init": "ones"}, r"init.*zero.*paper.*'ones'"),
    ],
)
def test_refuses_what_does_not_exist(options, message):
    with pytest.raises(ValueError, match=message):
        SwinBias(TokenLayout(2, 3), 2, **options)


def test_refuses_tokens_that_the_layout_does_not_have():
    q, k, v, _ = oracles.random_qkv(9)
    swin = build((2, 5, 0))
    with pytest.raises(ValueError, match=r"10 tokens.*9"):
        swin(q, k, TokenLayout(2, 5))
    ten, _, _, _ = oracles.random_qkv(10)
    with pytest.raises(ValueError, match=r"10 tokens.*9"):
        attend(q, k, v, swin(ten, ten, TokenLayout(2, 5)))
