import golden_cases
import layouts
import oracle_checks
import oracles
import pytest
import torch

from posenc import Shaw, TokenLayout, attend

BACKENDS = ("reference", "tiled")  # the value table needs the attention matrix


def build(layout, heads=2, head_dim=4, **options):
    layout = TokenLayout(*layout)
    return oracles.randomize(Shaw(layout, heads, head_dim, dtype=torch.float64, **options))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", golden_cases.names("shaw_"))
def test_one_row_equals_the_published_code(name, backend):
    golden = golden_cases.case(name)
    heads, head_dim, clip = (golden.hyperparameters[n] for n in ("heads", "head_dim", "clip"))
    layout = TokenLayout(1, golden["q"].shape[2])
    shaw = Shaw(layout, heads, head_dim, clip=clip, dtype=torch.float64)
    side = 2 * clip + 1
    row = slice(clip * side, clip * side + side)  # of row offset 0
    with torch.no_grad():
        shaw.table_k[row], shaw.table_v[row] = golden["table_k"], golden["table_v"]
    q, k, v = (golden.leaf(name) for name in "qkv")
    terms = shaw(q, k, layout)
    eye = torch.eye(layout.num_tokens, dtype=torch.float64).expand(2, heads, -1, -1)
    torch.testing.assert_close(
        attend(q, k, eye, terms[:1], backend=backend), golden["probs"], **golden.close
    )
    out = attend(q, k, v, terms, backend=backend)
    torch.testing.assert_close(out, golden["out"], **golden.close)
    out.backward(golden["grad_out"])
    grads = {"q": q.grad, "k": k.grad, "v": v.grad}
    grads |= {"table_k": shaw.table_k.grad[row], "table_v": shaw.table_v.grad[row]}
    for key, grad in grads.items():
        torch.testing.assert_close(grad, golden[f"grad_{key}"], **golden.close)


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
@pytest.mark.parametrize("values", [True, False])
def test_equals_the_oracle(layout, values):
    shaw = build(layout, clip=2, values=values)

    def bucket(i, j):
        offset = oracle_checks.key_minus_query(i, j, *layout[1:])
        if offset is None:
            return None
        row, column = (max(-2, min(2, d)) + 2 for d in offset)
        return row * 5 + column

    def entry(i, j, q):
        if bucket(i, j) is None:
            return torch.zeros(q.shape[:2], dtype=q.dtype)
        return (q[:, :, i] @ shaw.table_k[bucket(i, j)]) / 2  # 4 ** 0.5

    def expected(q, k, v):
        bias = oracles.build_bias(*layout, lambda i, j: entry(i, j, q))
        out, attention = oracles.attention(q, k, v, bias)
        if not values:
            return out
        return out + oracles.value_lookup(attention, shaw.table_v[None], bucket, *layout)

    oracle_checks.equals(shaw, layout, expected, backends=BACKENDS)


def test_values_are_an_option():
    assert [*dict(build((2, 3, 1), values=False).named_parameters())] == ["table_k"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"clip": 0}, ValueError, "Shaw: clip must be a positive int, got 0"),
        ({"clip": 2.5}, ValueError, r"Shaw: clip must be a positive int, got 2\.5"),
        ({"values": "no"}, TypeError, "Shaw: values must be True or False, got 'no'"),
    ],
)
def test_refuses_options_that_are_none(options, error, message):
    with pytest.raises(error, match=message):
        Shaw(TokenLayout(2, 3), 2, 4, **options)
