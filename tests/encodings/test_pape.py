import layouts
import oracle_checks
import oracles
import pytest
import torch

from posenc import PaPE, TokenLayout, attend

LAYOUTS = [*layouts.LAYOUTS, (1, 1, 2)]
FORMS = [{"parabolas": 3}, {"rotation_invariant": True}]


def build(layout, heads=2, head_dim=4, **options):
    encoding = PaPE(TokenLayout(*layout), heads, head_dim, dtype=torch.float64, **options)
    return oracles.randomize(encoding, 0)


def expected_entry(i, j, q, encoding, layout):
    """`[B, heads]`: one head and one parabola after another."""
    _, width, prefix = layout
    offset = oracle_checks.key_minus_query(i, j, width, prefix)
    columns = []
    for head in range(encoding.num_heads):
        total = torch.zeros(len(q), dtype=q.dtype)
        if offset is not None:
            row, column = -offset[0], -offset[1]
            for parabola in range(encoding.parabolas):
                query = q[:, head, i]
                a = (1 + (query @ encoding.curvature[head, parabola]).exp()).log()
                if encoding.rotation_invariant:
                    total = total - encoding.strength[head] * a * (row**2 + column**2)
                    continue
                along = encoding.directions[head, parabola]
                u = along[0] * row + along[1] * column
                total = total - a * u**2 + (query @ encoding.slope[head, parabola]) * u
        columns.append(total)
    return torch.stack(columns, -1)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", FORMS, ids=["parabolas", "rotation_invariant"])
def test_equals_the_oracle(layout, options):
    encoding = build(layout, **options)
    expected = oracle_checks.with_bias(
        lambda i, j, q, k: expected_entry(i, j, q, encoding, layout), layout
    )
    oracle_checks.equals(encoding, layout, expected, backends=("reference", "lowrank", "tiled"))


@pytest.mark.parametrize("options", FORMS, ids=["parabolas", "rotation_invariant"])
@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_the_rank_is_that_of_a_quadratic_form(prefix, options):
    encoding = build((5, 6, prefix), **options)
    q = torch.randn(2, 2, 30 + prefix, 4, dtype=torch.float64)
    (term,) = encoding(q, q, TokenLayout(5, 6, prefix))
    assert term.left.shape == (2, 2, 30 + prefix, 6 if prefix else 5)
    assert term.right.shape == (1, 1, 30 + prefix, 6 if prefix else 5)


def test_another_grid_continues_the_parabolas():
    """One query sees the keys of a larger grid as it sees those of its own."""
    encoding = build((3, 4, 1), parabolas=3)
    q = torch.randn(1, 2, 1, 4, dtype=torch.float64).expand(1, 2, 64, 4)
    small, large = TokenLayout(3, 4, 1), TokenLayout(7, 9, 1)
    biases = [
        encoding(q[:, :, : layout.num_tokens], q[:, :, : layout.num_tokens], layout)[0].dense()
        for layout in (small, large)
    ]
    grids = [
        bias[..., 1:, 1:].unflatten(-1, layout.grid).unflatten(-3, layout.grid)
        for bias, layout in zip(biases, (small, large), strict=True)
    ]
    at_origin = [grid[..., 1, 2, :3, :4] for grid in grids]
    torch.testing.assert_close(at_origin[0], at_origin[1], atol=1e-12, rtol=0)


def test_the_rotation_invariant_form_turns_with_the_grid():
    encoding = build((4, 4, 0), rotation_invariant=True)
    q = torch.randn(1, 2, 16, 4, dtype=torch.float64)
    turn = torch.arange(16).reshape(4, 4).rot90().flatten()
    bias, turned = (encoding(x, x, TokenLayout(4, 4))[0].dense() for x in (q, q[..., turn, :]))
    want = bias[..., turn, :][..., turn]
    shift = [x - x[..., :1] for x in (turned, want)]  # up to a constant per query
    torch.testing.assert_close(*shift, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("options", "moved"), [({}, {"directions"}), ({"rotation_invariant": True}, {"strength"})]
)
def test_no_effect_at_the_start_and_a_gradient_to_all_after_a_step(options, moved):
    layout = TokenLayout(2, 3, prefix=1)
    encoding = PaPE(layout, 2, 4, dtype=torch.float64, **options)
    assert not encoding.changes_at_start()
    q, k, v, cotangent = oracles.random_qkv(7)
    out = attend(q, k, v, encoding(q, k, layout))
    torch.testing.assert_close(out, attend(q, k, v), atol=1e-14, rtol=0)
    out.backward(cotangent)
    assert {name for name, x in encoding.named_parameters() if x.grad.any()} == moved
    torch.optim.SGD(encoding.parameters(), lr=1.0).step()
    attend(q, k, v, encoding(q, k, layout)).backward(cotangent)
    assert all(parameter.grad.any() for parameter in encoding.parameters())


def test_a_start_is_a_spread():
    torch.manual_seed(0)
    encoding = PaPE(TokenLayout(2, 3), 16, 64, parabolas=50, start=0.5)
    assert encoding.changes_at_start()
    torch.testing.assert_close(encoding.directions.std(), torch.tensor(0.5), atol=0.02, rtol=0)
    for weight in (encoding.curvature, encoding.slope):
        torch.testing.assert_close(weight.std(), torch.tensor(1 / 8), atol=0.01, rtol=0)


def test_16_bit_queries_are_read_in_float32():
    layout = TokenLayout(2, 3, 1)
    encoding = oracles.randomize(PaPE(layout, 2, 4)).bfloat16()
    q = torch.randn(2, 2, 7, 4).bfloat16()
    (term,) = encoding(q, q, layout)
    (exact,) = encoding.double()(q.double(), q.double(), layout)
    assert term.dense().dtype == torch.float32
    torch.testing.assert_close(term.dense().double(), exact.dense(), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"parabolas": 0}, ValueError, "PaPE: parabolas must be a positive int, got 0"),
        ({"parabolas": 1, "rotation_invariant": True}, ValueError, "PaPE: rotation_invariant=True"),
        ({"rotation_invariant": 1}, TypeError, "PaPE: rotation_invariant must be True or False"),
        ({"start": -1.0}, ValueError, r"PaPE: start must be at least 0, got -1\.0"),
        ({"start": "far"}, ValueError, "PaPE: start must be a finite number, got 'far'"),
    ],
)
def test_refuses_options_that_are_none(options, error, message):
    with pytest.raises(error, match=message):
        PaPE(TokenLayout(2, 3), 2, 4, **options)
