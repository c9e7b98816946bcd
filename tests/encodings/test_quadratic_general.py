"""The form with an inverse covariance per head."""

import golden_cases
import layouts
import oracle_checks
import oracles
import pytest
import torch
from torch.func import functional_call

from posenc import Quadratic, TokenLayout, attend


def build(layout, **options):
    quadratic = Quadratic(TokenLayout(*layout), 3, general=True, dtype=torch.float64, **options)
    return oracles.randomize(quadratic)


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
@pytest.mark.parametrize("name", golden_cases.names("quadratic_general"))
def test_equals_the_published_code(name, backend):
    golden = golden_cases.case(name)
    grid, heads = golden.hyperparameters["grid_rows_cols"], golden.hyperparameters["heads"]
    layout = TokenLayout(*grid)
    leaves = {
        key: golden.leaf(key) for key in ("x", "centers", "spreads", "value_weight", "value_bias")
    }
    v = leaves["x"].flatten(1, 2)[:, None].expand(-1, heads, -1, -1)
    q = torch.zeros_like(v)
    parameters = {
        "centers": leaves["centers"],
        "precision_root": leaves["spreads"],
        "strength": torch.ones(heads, dtype=torch.float64),
    }
    quadratic = Quadratic(layout, heads, general=True)
    terms = functional_call(quadratic, parameters, (q, q, layout))
    out = attend(q, q, v, terms, backend=backend).transpose(1, 2).flatten(2)
    out = torch.nn.functional.linear(out, leaves["value_weight"], leaves["value_bias"])
    torch.testing.assert_close(out, golden["out"].flatten(1, 2), **golden.close)
    eye = torch.eye(layout.num_tokens, dtype=torch.float64).expand(len(q), heads, -1, -1)
    probabilities = golden["probs"].permute(2, 0, 1, 3, 4).flatten(3).flatten(1, 2)
    torch.testing.assert_close(
        attend(q, q, eye, terms, backend=backend)[0], probabilities, **golden.close
    )
    out.backward(golden["grad_out"].flatten(1, 2))
    for key, leaf in leaves.items():
        torch.testing.assert_close(leaf.grad, golden[f"grad_{key}"], **golden.close)


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_equals_the_oracle(layout):
    quadratic = build(layout)

    def entry(i, j, q, k):
        offset = oracle_checks.key_minus_query(i, j, *layout[1:])
        if offset is None:
            return torch.zeros(1, 3, dtype=torch.float64)
        row, column = (offset[axis] - quadratic.centers[:, axis] for axis in (0, 1))
        root = quadratic.precision_root
        first = root[:, 0, 0] * row + root[:, 1, 0] * column
        second = root[:, 0, 1] * row + root[:, 1, 1] * column
        return (-quadratic.strength / 2 * (first**2 + second**2))[None]

    expected = oracle_checks.with_bias(entry, layout)
    backends = ("reference", "sdpa", "lowrank", "tiled")
    oracle_checks.equals(quadratic, layout, expected, backends=backends)


def test_starts_with_the_bias_of_the_circle():
    layout = TokenLayout(3, 4, prefix=1)
    x = torch.zeros(1, 3, 13, 4, dtype=torch.float64)
    biases = [
        Quadratic(layout, 3, alpha=0.7, general=general, dtype=torch.float64)(x, x, layout)
        for general in (False, True)
    ]
    torch.testing.assert_close(*(bias[0].dense() for bias in biases))


def test_has_a_matrix_instead_of_a_number():
    shapes = {name: tuple(p.shape) for name, p in build((2, 3, 1)).named_parameters()}
    assert shapes == {"centers": (3, 2), "precision_root": (3, 2, 2), "strength": (3,)}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"general": 1}, TypeError, "Quadratic: general must be True or False, got 1"),
        ({"general": True, "alpha": -1}, ValueError, r"alpha must be at least 0 .*got -1\.0"),
    ],
)
def test_refuses_what_is_no_covariance(options, error, message):
    with pytest.raises(error, match=message):
        Quadratic(TokenLayout(2, 3), 2, **options)
