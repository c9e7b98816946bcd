import golden_cases
import oracles
import pytest
import torch
import torch.nn.functional as F

from posenc import Decomposed, TokenLayout, attend, explain

BACKENDS = ["reference", "sdpa", "tiled", "lowrank"]
LAYOUTS = [(2, 5, 0), (4, 3, 1), (1, 6, 2), (3, 2, 5), (1, 1, 2)]


def build(layout, *, seed=0, heads=2, head_dim=4):
    encoding = Decomposed(TokenLayout(*layout), heads, head_dim, dtype=torch.float64)
    return oracles.randomize(encoding, seed)


def expected_bias(q, rows, cols, layout):
    """`rows` and `cols` are functions from an offset, query minus key, to `[head_dim]`."""
    height, width, prefix = layout

    def entry(i, j):
        query, key = (oracles.position(token, width, prefix) for token in (i, j))
        if query is None or key is None:
            return torch.zeros(q.shape[:2], dtype=q.dtype)
        table = rows(query[0] - key[0]) + cols(query[1] - key[1])
        return (q[:, :, i] * table).sum(-1)

    return oracles.build_bias(height, width, prefix, entry)


def resized(table, side):
    """A line of `2 side - 1` entries from this table, each a mean of its two nearest neighbors."""
    old, new = len(table), 2 * side - 1

    def entry(offset):
        place = (offset + side - 1 + 0.5) * old / new - 0.5
        place = min(max(place, 0.0), old - 1)
        low = min(int(place), max(old - 2, 0))
        share = place - low
        return (1 - share) * table[low] + share * table[min(low + 1, old - 1)]

    return entry


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", golden_cases.names("sam_decomposed"))
def test_equals_the_published_code(name, backend):
    golden = golden_cases.case(name)
    options = golden.hyperparameters
    heads, layout = options["heads"], TokenLayout(*options["grid_h_w"])
    weights = {key[2:]: golden.leaf(key) for key in golden.arrays if key.startswith("p.")}
    encoding = Decomposed(
        TokenLayout(*options["table_grid"]), heads, options["dim"] // heads, dtype=torch.float64
    )
    encoding.load_state_dict(
        {"table_rows": golden["p.rel_pos_h"], "table_cols": golden["p.rel_pos_w"]}
    )
    x = golden.leaf("x")
    qkv = F.linear(x.flatten(1, 2), weights["qkv.weight"], weights["qkv.bias"])
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    terms = encoding(q, k, layout)
    bias = sum(term.dense() for term in terms)
    torch.testing.assert_close(bias, golden["bias"], **golden.close)
    out = attend(q, k, v, terms, backend=backend).transpose(1, 2).flatten(2)
    out = F.linear(out, weights["proj.weight"], weights["proj.bias"])
    torch.testing.assert_close(out, golden["out"].flatten(1, 2), **golden.close)
    out.backward(golden["grad_out"].flatten(1, 2))
    grads = {"grad_x": x.grad}
    grads |= {f"grad.{key}": weight.grad for key, weight in weights.items()}
    grads |= {
        "grad.rel_pos_h": encoding.table_rows.grad,
        "grad.rel_pos_w": encoding.table_cols.grad,
    }
    stored = {key for key in golden.arrays if key.startswith(("grad.", "grad_x"))}
    assert stored == grads.keys()
    for key, grad in grads.items():
        torch.testing.assert_close(grad, golden[key], **golden.close, msg=lambda m, k=key: k + m)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_the_oracle(layout):
    encoding = build(layout)
    q, k, v, cotangent = oracles.random_qkv(oracles.num_tokens(*layout))
    height, width, _ = layout
    bias = expected_bias(
        q,
        lambda offset: encoding.table_rows[offset + height - 1],
        lambda offset: encoding.table_cols[offset + width - 1],
        layout,
    )
    expected, _ = oracles.attention(q, k, v, bias)
    leaves = [q, k, v, encoding.table_rows, encoding.table_cols]
    wanted = torch.autograd.grad(expected, leaves, cotangent)
    for backend in BACKENDS:
        out = attend(q, k, v, encoding(q, k, TokenLayout(*layout)), backend=backend)
        torch.testing.assert_close(out, expected, atol=1e-10, rtol=0)
        for grad, want in zip(torch.autograd.grad(out, leaves, cotangent), wanted, strict=True):
            torch.testing.assert_close(grad, want, atol=1e-10, rtol=0)


@pytest.mark.parametrize("used", [(7, 4, 2), (5, 2, 2), (1, 3, 2)])
def test_tables_are_resized_on_another_grid(used):
    encoding = build((2, 5, 2))
    q, k, _, _ = oracles.random_qkv(oracles.num_tokens(*used))
    rows, cols = resized(encoding.table_rows, used[0]), resized(encoding.table_cols, used[1])
    expected = expected_bias(q, rows, cols, used)
    stored = [p.detach().clone() for p in encoding.parameters()]
    bias = sum(term.dense() for term in encoding(q, k, TokenLayout(*used)))
    torch.testing.assert_close(bias, expected, atol=1e-10, rtol=0)
    leaves = [q, *encoding.parameters()]
    cotangent = torch.randn(bias.shape, generator=torch.Generator().manual_seed(0)).double()
    grads = [torch.autograd.grad(b, leaves, cotangent) for b in (bias, expected)]
    for grad, want in zip(*grads, strict=True):
        torch.testing.assert_close(grad, want, atol=1e-10, rtol=0)
    for before, now in zip(stored, encoding.parameters(), strict=True):
        assert torch.equal(before, now)


def test_the_scale_of_the_attention_does_not_reach_the_bias():
    encoding, layout = build((2, 3, 1)), TokenLayout(2, 3, prefix=1)
    q, k, _, _ = oracles.random_qkv(7)
    for term, other in zip(encoding(q, k, layout), encoding(q, k, layout, scale=3.0), strict=True):
        assert torch.equal(term.dense(), other.dense())


def test_the_tables_are_thin():
    encoding, layout = build((2, 3, 1)), TokenLayout(2, 3, prefix=1)
    q, k, v, _ = oracles.random_qkv(7)
    terms = encoding(q, k, layout)
    assert [term.index.axis for term in terms] == ["rows", "cols"]
    assert explain(q, k, v, terms).reasons["lowrank"] is None


def test_no_effect_at_the_start_and_a_gradient():
    layout = TokenLayout(2, 3, prefix=1)
    encoding = Decomposed(layout, 2, 4, dtype=torch.float64)
    q, k, v, cotangent = oracles.random_qkv(7)
    out = attend(q, k, v, encoding(q, k, layout))
    torch.testing.assert_close(out, attend(q, k, v), atol=1e-14, rtol=0)
    out.backward(cotangent)
    assert all((p.grad != 0).any() for p in encoding.parameters())


def test_refuses_a_head_of_another_width():
    encoding = build((2, 3, 0))
    q = torch.randn(1, 2, 6, 8, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"head_dim=4, but q has 2 heads of width 8"):
        encoding(q, q, TokenLayout(2, 3))
