import golden_cases
import layouts
import oracle_checks
import oracles
import pytest
import torch

from posenc import Huang, TokenLayout, attend
from posenc.attention import attention_matrix


def build(layout, heads=2, head_dim=4, **options):
    layout = TokenLayout(*layout)
    return oracles.randomize(Huang(layout, heads, head_dim, dtype=torch.float64, **options))


@pytest.mark.parametrize("backend", oracle_checks.BACKENDS)
@pytest.mark.parametrize("name", golden_cases.names("hf_relative_key"))
def test_one_row_equals_hugging_face(name, backend):
    golden = golden_cases.case(name)
    options, x = golden.hyperparameters, golden.leaf("x")
    heads, clip = options["heads"], options["max_position_embeddings"] - 1
    layout = TokenLayout(1, options["tokens"])
    form = "key_query" if "key_query" in name else "key"
    huang = Huang(layout, heads, options["dim"] // heads, form=form, clip=clip, dtype=x.dtype)
    side = 2 * clip + 1
    row = slice(clip * side, clip * side + side)  # of row offset 0
    with torch.no_grad():
        huang.table[row] = golden["p.distance_embedding.weight"]
    weights = {
        key: golden.leaf(key) for key in golden.arrays if key.startswith(("p.q", "p.k", "p.v"))
    }

    def project(name):
        out = x @ weights[f"p.{name}.weight"].T + weights[f"p.{name}.bias"]
        return out.unflatten(-1, (heads, -1)).transpose(1, 2)

    q, k, v = map(project, ("query", "key", "value"))
    terms = huang(q, k, layout)
    torch.testing.assert_close(attention_matrix(q, k, v, terms), golden["probs"], **golden.close)
    out = attend(q, k, v, terms, backend=backend).transpose(1, 2).flatten(2)
    torch.testing.assert_close(out, golden["out"], **golden.close)
    out.backward(golden["grad_out"])
    torch.testing.assert_close(x.grad, golden["grad_x"], **golden.close)
    grads = {key[2:]: weight.grad for key, weight in weights.items()}
    grads["distance_embedding.weight"] = huang.table.grad[row]
    for key, grad in grads.items():
        torch.testing.assert_close(grad, golden[f"grad.{key}"], **golden.close)


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
@pytest.mark.parametrize("form", ["key", "key_query"])
def test_equals_the_oracle(layout, form):
    huang = build(layout, clip=2, form=form)

    def entry(i, j, q, k):
        offset = oracle_checks.key_minus_query(i, j, *layout[1:])
        if offset is None:
            return torch.zeros(q.shape[:2], dtype=q.dtype)
        row, column = (max(-2, min(2, -d)) + 2 for d in offset)  # query minus key
        content = q[:, :, i] + k[:, :, j] if form == "key_query" else q[:, :, i]
        return (content @ huang.table[row * 5 + column]) / 2  # 4 ** 0.5

    oracle_checks.equals(huang, layout, oracle_checks.with_bias(entry, layout))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "query"}, "Huang: form must be one of 'key_query', 'key', got 'query'"),
        ({"clip": 0}, "Huang: clip must be a positive int, got 0"),
    ],
)
def test_refuses_options_that_do_not_exist(options, message):
    with pytest.raises(ValueError, match=message):
        Huang(TokenLayout(2, 3), 2, 4, **options)
