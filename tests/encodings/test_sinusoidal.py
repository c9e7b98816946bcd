import golden_cases
import oracles
import pytest
import torch
from layouts import LAYOUTS

from posenc import Sinusoidal, TokenLayout


def tokens(layout, dim, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (2, oracles.num_tokens(*layout), dim)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("side", [4, 7])
def test_equals_mae(side):
    golden = golden_cases.case(f"sincos2d_mae_{side}x{side}_c16")
    layout = TokenLayout(side, side, prefix=1)
    x = tokens((side, side, 1), 16)
    out = Sinusoidal(layout, 16, dtype=torch.float64)(x, layout)
    torch.testing.assert_close(out - x, golden["pe"].expand_as(x), **golden.close)


@pytest.mark.parametrize("convention", ["mae", "timm", "vaswani"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("temperature", [10000.0, 50.0])
def test_equals_the_formula(layout, convention, temperature):
    encoding = Sinusoidal(
        TokenLayout(*layout), 12, convention=convention, temperature=temperature,
        strength=0.7, dtype=torch.float64,
    )  # fmt: skip
    x = tokens(layout, 12).requires_grad_()
    table = oracles.sincos(*layout, 12, convention, temperature)
    out = encoding(x, TokenLayout(*layout))
    torch.testing.assert_close(out, x + 0.7 * table, atol=1e-12, rtol=0)
    cotangent = tokens(layout, 12, seed=1)
    out.backward(cotangent)
    torch.testing.assert_close(encoding.strength.grad[0], (cotangent * table).sum())
    torch.testing.assert_close(x.grad, cotangent)


@pytest.mark.parametrize("used", [(5, 2, 0), (3, 7, 2)])
def test_the_table_follows_the_layout_of_the_call(used):
    encoding = Sinusoidal(TokenLayout(2, 5), 8, dtype=torch.float64)
    x = tokens(used, 8)
    expected = x + oracles.sincos(*used, 8, "mae")
    torch.testing.assert_close(encoding(x, TokenLayout(*used)), expected, atol=1e-12, rtol=0)


def test_the_only_parameter_is_the_strength():
    encoding = Sinusoidal(TokenLayout(2, 3), 8)
    assert [(name, p.shape, p.item()) for name, p in encoding.named_parameters()] == [
        ("strength", torch.Size([1]), 1.0)
    ]
    assert list(encoding.state_dict()) == ["strength"]


def test_strength_zero_is_the_identity():
    layout = TokenLayout(2, 5, prefix=1)
    x = tokens((2, 5, 1), 8)
    assert torch.equal(Sinusoidal(layout, 8, strength=0.0, dtype=torch.float64)(x, layout), x)


@pytest.mark.parametrize("convention", ["mae", "timm"])
@pytest.mark.parametrize("embed_dim", [6, 10])
def test_refuses_a_width_that_two_axes_cannot_share(convention, embed_dim):
    with pytest.raises(ValueError, match=rf"embed_dim.*4.*{convention}.*{embed_dim}"):
        Sinusoidal(TokenLayout(2, 3), embed_dim, convention=convention)


def test_vaswani_needs_no_multiple_of_four():
    layout = TokenLayout(2, 3)
    encoding = Sinusoidal(layout, 6, convention="vaswani", dtype=torch.float64)
    out = encoding(torch.zeros(1, 6, 6, dtype=torch.float64), layout)[0]
    torch.testing.assert_close(out, oracles.sincos(2, 3, 0, 6, "vaswani"), atol=1e-12, rtol=0)


def test_refuses_an_unknown_convention():
    with pytest.raises(ValueError, match=r"convention.*mae.*timm.*vaswani.*'dino'"):
        Sinusoidal(TokenLayout(2, 3), 8, convention="dino")


@pytest.mark.parametrize("count", [9, 11])
def test_refuses_tokens_that_the_layout_does_not_have(count):
    encoding = Sinusoidal(TokenLayout(2, 5), 8)
    with pytest.raises(ValueError, match=rf"10 tokens.*{count}"):
        encoding(torch.zeros(2, count, 8), TokenLayout(2, 5))


def test_refuses_another_width():
    encoding = Sinusoidal(TokenLayout(2, 5), 8)
    with pytest.raises(ValueError, match=r"8.*12"):
        encoding(torch.zeros(2, 10, 12), TokenLayout(2, 5))
