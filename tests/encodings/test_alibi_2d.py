import golden_cases
import oracles
import pytest
import torch
from distance_cases import BACKENDS, LAYOUTS, assert_equals_the_oracle, bias_of_distance

from posenc import ALiBi2D, TokenLayout, attend
from posenc.functional.distances import alibi_slopes
from posenc.terms import LowRankBias

POWER = {"euclidean": 1, "squared": 2}


def dense(encoding, layout):
    q, k, _, _ = oracles.random_qkv(oracles.num_tokens(*layout), heads=encoding.num_heads)
    (term,) = encoding(q, k, TokenLayout(*layout))
    return term.exact_form.dense()


@pytest.mark.parametrize("name", golden_cases.names("alibi2d"))
def test_equals_the_published_code(name):
    golden = golden_cases.case(name)
    grid, heads = golden.hyperparameters["grid"], golden.hyperparameters["heads"]
    bias = dense(ALiBi2D(TokenLayout(*grid), heads), (*grid, 0))
    torch.testing.assert_close(bias, golden["bias"], rtol=0, atol=golden.tolerance["atol"])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("distance", POWER)
@pytest.mark.parametrize("learnable", [False, True])
def test_equals_the_oracle(layout, distance, learnable):
    encoding = ALiBi2D(
        TokenLayout(*layout), 3, distance=distance, learnable=learnable, dtype=torch.float64
    )
    oracles.randomize(encoding)
    slopes = encoding.slopes if learnable else torch.tensor([1 / 16, 1 / 256, 1 / 4]).double()
    backends = [*BACKENDS, "lowrank"] if distance == "squared" else BACKENDS
    assert_equals_the_oracle(encoding, layout, lambda d: -slopes * d ** POWER[distance], backends)


@pytest.mark.parametrize("prefix", [0, 2])
def test_one_row_is_the_one_dimensional_scheme(prefix):
    """Press et al.: slope times (key - query), here for keys on both sides."""
    layout = (1, 7, prefix)
    bias = dense(ALiBi2D(TokenLayout(*layout), 8), layout)[0, :, prefix:, prefix:]
    place = torch.arange(7)
    slopes = torch.tensor([1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256])
    causal = slopes[:, None, None] * (place - place[:, None])
    torch.testing.assert_close(bias.tril(), causal.tril().double())
    torch.testing.assert_close(bias, bias.transpose(-2, -1))


def test_slopes_of_twelve_heads_are_those_of_eight_and_every_second_of_sixteen():
    slopes = torch.tensor(alibi_slopes(12)).double().log2()
    between = [-0.5, -1.5, -2.5, -3.5]
    expected = torch.tensor([-1.0, -2, -3, -4, -5, -6, -7, -8, *between]).double()
    torch.testing.assert_close(slopes, expected, rtol=0, atol=1e-6)
    assert alibi_slopes(1) == [2**-8]


def test_squared_distances_are_of_low_rank():
    for prefix, rank in ((0, 3), (2, 4)):
        layout = TokenLayout(3, 4, prefix)
        encoding = ALiBi2D(layout, 2, distance="squared")
        q = torch.zeros(1, 2, layout.num_tokens, 4, dtype=torch.float64)
        (term,) = encoding(q, q, layout)
        assert isinstance(term, LowRankBias)
        assert term.left.shape[-1] == term.right.shape[-1] == rank
        expected = term.exact.dense()
        difference = term.dense() - expected
        constant = difference.mean(-1, keepdim=True).expand_as(difference)
        torch.testing.assert_close(difference, constant, rtol=0, atol=1e-12)


def test_another_grid_needs_no_resizing():
    encoding = ALiBi2D(TokenLayout(2, 5, 1), 2)
    bias = dense(encoding, (3, 4, 2))
    slopes = torch.tensor(alibi_slopes(2)).double()
    torch.testing.assert_close(bias, bias_of_distance((3, 4, 2), lambda d: -slopes * d))


def test_fixed_slopes_are_no_parameters_and_learned_ones_start_alike():
    layout = (2, 5, 1)
    fixed, learned = (ALiBi2D(TokenLayout(*layout), 6, learnable=on) for on in (False, True))
    assert dict(fixed.named_parameters()) == {}
    assert {n: tuple(p.shape) for n, p in learned.named_parameters()} == {"slopes": (6,)}
    torch.testing.assert_close(dense(fixed, layout), dense(learned, layout))
    assert torch.equal(
        dense(ALiBi2D(TokenLayout(*layout), 6, strength=2.0), layout), 2 * dense(fixed, layout)
    )


def test_no_effect_with_strength_0_and_a_gradient():
    layout = TokenLayout(2, 5, prefix=1)
    encoding = ALiBi2D(layout, 2, learnable=True, strength=0, dtype=torch.float64)
    assert encoding.changes_at_start() is False
    q, k, v, cotangent = oracles.random_qkv(11)
    out = attend(q, k, v, encoding(q, k, layout))
    torch.testing.assert_close(out, attend(q, k, v), atol=1e-14, rtol=0)
    out.backward(cotangent)
    assert (encoding.slopes.grad != 0).all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"distance": "city"}, ValueError, r"distance must be one of 'euclidean', 'squared'.*'ci"),
        ({"learnable": "no"}, TypeError, r"learnable must be True or False, got 'no'"),
        ({"strength": "x"}, ValueError, r"strength must be a finite number, got 'x'"),
        ({"strength": 0}, ValueError, r"strength=0 with slopes .* never .* learnable=True"),
    ],
)
def test_refuses_what_does_not_exist(options, error, message):
    with pytest.raises(error, match=message):
        ALiBi2D(TokenLayout(2, 3), 2, **options)
