import golden_cases
import layouts
import oracle_checks
import oracles
import pytest
import torch
import torch.nn.functional as F

from posenc import CordonnierLearned, TokenLayout, attend
from posenc.attention import attention_matrix


def build(layout, **options):
    layout = TokenLayout(*layout)
    return oracles.randomize(CordonnierLearned(layout, 2, 4, dtype=torch.float64, **options))


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
@pytest.mark.parametrize("name", golden_cases.names("cordonnier_"))
def test_equals_the_published_code(name, backend):
    """Whose row embeddings are of columns, and the other way round."""
    golden = golden_cases.case(name)
    options, x = golden.hyperparameters, golden.leaf("x")
    layout, heads = TokenLayout(*options["grid"]), options["heads"]
    longest, content = options["max_position_embeddings"] - 1, options["content"]
    encoding = CordonnierLearned(
        layout, heads, options["channels"], content=content, max_offset=longest, dtype=x.dtype
    )
    own = {
        "row_embedding": "col_embeddings.weight",
        "column_embedding": "row_embeddings.weight",
        "row_key": "head_keys_col.weight",
        "column_key": "head_keys_row.weight",
    }
    encoding.load_state_dict({name: golden[f"p.{theirs}"] for name, theirs in own.items()})
    weights = {
        key[2:]: golden.leaf(key)
        for key in golden.arrays
        if key.startswith("p.") and key[2:] not in own.values()
    }

    def project(layer):
        out = F.linear(x, weights[f"{layer}.weight"], weights[f"{layer}.bias"]).flatten(1, 2)
        return out.unflatten(-1, (heads, -1)).transpose(1, 2)

    v = x.flatten(1, 2)[:, None].expand(-1, heads, -1, -1)  # the features, for all heads
    q, k = (project("query"), project("key")) if content else (v, v)
    terms = encoding(q, k, layout)
    probs = golden["probs"] if content else golden["probs"].expand(2, -1, -1, -1, -1, -1)
    expected = probs.permute(0, 3, 1, 2, 4, 5).flatten(4).flatten(2, 3)
    torch.testing.assert_close(attention_matrix(q, k, v, terms), expected, **golden.close)
    out = attend(q, k, v, terms, backend=backend).transpose(1, 2).flatten(2)
    out = F.linear(out, weights["value.weight"], weights["value.bias"]).unflatten(1, layout.grid)
    torch.testing.assert_close(out, golden["out"], **golden.close)
    out.backward(golden["grad_out"])
    torch.testing.assert_close(x.grad, golden["grad_x"], **golden.close)
    grads = {theirs: getattr(encoding, name).grad for name, theirs in own.items()}
    for key, grad in {**grads, **{key: w.grad for key, w in weights.items()}}.items():
        torch.testing.assert_close(grad, golden[f"grad.{key}"], **golden.close)


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
@pytest.mark.parametrize("options", [{}, {"max_offset": 2}, {"content": False}])
def test_equals_the_oracle(layout, options):
    encoding = build(layout, **options)
    longest = options.get("max_offset", max(layout[:2]) - 1)

    def entry(i, j, q, k):
        offset = oracle_checks.key_minus_query(i, j, *layout[1:])
        if offset is None:
            return torch.zeros(1, 2, dtype=torch.float64)
        row, column = (max(-longest, min(longest, d)) + longest for d in offset)
        score = encoding.row_key @ encoding.row_embedding[row]
        return (score + encoding.column_key @ encoding.column_embedding[column])[None]

    def expected(q, k, v):
        bias = oracles.build_bias(*layout, lambda i, j: entry(i, j, q, k))
        return oracles.attention(q, k, v, bias, scale=0.5 if encoding.content else 0.0)[0]

    oracle_checks.equals(encoding, layout, expected)


def test_another_grid_reads_the_offsets_that_it_has():
    encoding = build((2, 5, 1))
    q, k, _, _ = oracles.random_qkv(13)
    longer = build((2, 5, 1), max_offset=5)
    for name in ("row_embedding", "column_embedding"):
        value = getattr(encoding, name).detach()
        padded = torch.cat([value[:1], value, value[-1:]])
        getattr(longer, name).data.copy_(padded)
    longer.row_key.data.copy_(encoding.row_key)
    longer.column_key.data.copy_(encoding.column_key)
    layout = TokenLayout(6, 2, prefix=1)
    biases = [each(q, k, layout)[0].dense() for each in (encoding, longer)]
    torch.testing.assert_close(*biases)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"content": 0}, TypeError, "CordonnierLearned: content must be True or False, got 0"),
        ({"max_offset": 0}, ValueError, "max_offset must be a positive int, got 0"),
    ],
)
def test_refuses_options_that_do_not_exist(options, error, message):
    with pytest.raises(error, match=message):
        CordonnierLearned(TokenLayout(2, 3), 2, 4, **options)
