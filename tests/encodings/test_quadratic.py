import golden_cases
import oracles
import pytest
import torch
from torch.func import functional_call

from posenc import Quadratic, TokenLayout, attend

BACKENDS = ["reference", "sdpa"]
LAYOUTS = [(2, 5, 0), (7, 4, 1), (1, 6, 2), (3, 2, 5)]


def build(layout, *, seed=0, heads=2, **options):
    return oracles.randomize(
        Quadratic(TokenLayout(*layout), heads, dtype=torch.float64, **options), seed
    )


def centered(bias):
    """Without the constant per query, which softmax does not see."""
    return bias - bias.mean(-1, keepdim=True)


def positional_only(grid, heads, features):
    """q = k = 0 and every head reads the raw features, as in the published code."""
    tokens = grid[0] * grid[1]
    zeros = torch.zeros(len(features), heads, tokens, 8, dtype=torch.float64)
    return zeros, features.flatten(1, 2)[:, None].expand(-1, heads, -1, -1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", golden_cases.names("quadratic_iso"))
def test_equals_the_published_code(name, backend):
    golden = golden_cases.case(name)
    grid, heads = golden.hyperparameters["grid_rows_cols"], golden.hyperparameters["heads"]
    layout = TokenLayout(*grid)
    leaves = {
        key: golden.leaf(key) for key in ("x", "centers", "spreads", "value_weight", "value_bias")
    }
    q, v = positional_only(grid, heads, leaves["x"])
    parameters = {
        "centers": leaves["centers"],
        "alpha": leaves["spreads"] ** 2 / 2,
        "strength": torch.ones(heads, dtype=torch.float64),
    }
    terms = functional_call(Quadratic(layout, heads), parameters, (q, q, layout))
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


@pytest.mark.parametrize("backend", BACKENDS)
def test_nine_heads_are_a_convolution_with_replicate_padding(backend):
    """The theorem holds in the interior; the border replicates and does not pad with zeros."""
    golden = golden_cases.case("quadratic_as_conv_k3_h5w5")
    layout = TokenLayout(5, 5)
    alpha = golden.hyperparameters["paper_alpha"]
    quadratic = Quadratic(layout, 9, alpha=alpha, dtype=torch.float64)
    with torch.no_grad():
        quadratic.centers.copy_(golden["centers"])  # the order in which the kernel is flattened
    q, v = positional_only(layout.grid, 9, golden["x"])
    out = attend(q, q, v, quadratic(q, q, layout), backend=backend).transpose(1, 2).flatten(2)
    out = (out @ golden["value_weight"].T + golden["conv_bias"]).unflatten(1, layout.grid)
    atol = golden.tolerance["attn_out"]["atol"]
    torch.testing.assert_close(out, golden["attn_out"], atol=atol, rtol=0)
    replicate = golden["conv_out_replicate_pad"].permute(0, 2, 3, 1)
    zero_pad = golden["conv_out_zero_pad"].permute(0, 2, 3, 1)
    torch.testing.assert_close(out, replicate, atol=atol, rtol=0)
    inner = slice(1, -1)
    torch.testing.assert_close(out[:, inner, inner], zero_pad[:, inner, inner], atol=atol, rtol=0)
    border = torch.ones(5, 5, dtype=torch.bool)
    border[inner, inner] = False
    assert ((out - zero_pad).abs().amax((0, 3))[border] > 0.1).all()


@pytest.mark.parametrize("grid", [(4, 7), (6, 3)])
def test_nine_heads_are_a_convolution_on_rectangles(grid):
    layout = TokenLayout(*grid)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 3, *grid, generator=generator, dtype=torch.float64)
    kernel = torch.randn(4, 3, 3, 3, generator=generator, dtype=torch.float64)
    quadratic = Quadratic(layout, 9, alpha=80.0, dtype=torch.float64)
    q, v = positional_only(grid, 9, image.permute(0, 2, 3, 1))
    heads = attend(q, q, v, quadratic(q, q, layout)).unflatten(2, grid)
    centers = quadratic.centers.detach().to(torch.int64) + 1
    out = sum(
        torch.einsum("byxi,oi->boyx", heads[:, head], kernel[:, :, row, column])
        for head, (row, column) in enumerate(centers.tolist())
    )
    padded = torch.nn.functional.pad(image, (1, 1, 1, 1), mode="replicate")
    torch.testing.assert_close(out, torch.nn.functional.conv2d(padded, kernel), atol=1e-9, rtol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("init", ["stencil", "normal"])
def test_equals_the_oracle(layout, init):
    torch.manual_seed(0)
    quadratic = build(layout, heads=3, init=init)
    q, k, v, cotangent = oracles.random_qkv(oracles.num_tokens(*layout), heads=3)
    parameters = dict(quadratic.named_parameters())
    expected_bias = oracles.quadratic_bias(
        parameters["centers"], parameters["alpha"], parameters["strength"], *layout
    )
    expected, _ = oracles.attention(q, k, v, expected_bias)
    leaves = [q, k, v, *parameters.values()]
    wanted = torch.autograd.grad(expected, leaves, cotangent)
    for backend in BACKENDS:
        terms = quadratic(q, k, TokenLayout(*layout))
        bias = terms[0].dense()
        torch.testing.assert_close(centered(bias), centered(expected_bias), atol=1e-10, rtol=0)
        out = attend(q, k, v, terms, backend=backend)
        torch.testing.assert_close(out, expected, atol=1e-10, rtol=0)
        for grad, want in zip(torch.autograd.grad(out, leaves, cotangent), wanted, strict=True):
            torch.testing.assert_close(grad, want, atol=1e-9, rtol=0)


def test_another_grid_needs_no_resampling():
    quadratic = build((2, 5, 1))
    q, k, _, _ = oracles.random_qkv(11)
    parameters = dict(quadratic.named_parameters())
    expected = oracles.quadratic_bias(**parameters, height=5, width=2, prefix=1)
    bias = quadratic(q, k, TokenLayout(5, 2, prefix=1))[0].dense()
    torch.testing.assert_close(centered(bias), centered(expected), atol=1e-10, rtol=0)


def test_orientation():
    """Center (1, -2): a query looks at the key one row below and two columns left."""
    layout = TokenLayout(3, 5)
    quadratic = Quadratic(layout, 1, alpha=50.0, dtype=torch.float64)
    with torch.no_grad():
        quadratic.centers[0] = torch.tensor([1.0, -2.0])
    zeros = torch.zeros(1, 1, 15, 4, dtype=torch.float64)
    eye = torch.eye(15, dtype=torch.float64)[None, None]
    attention = attend(zeros, zeros, eye, quadratic(zeros, zeros, layout))[0, 0]
    query, key = 1 * 5 + 3, 2 * 5 + 1
    assert attention[query].argmax() == key
    torch.testing.assert_close(attention[query, key].item(), 1.0)


def test_the_factors_are_of_rank_three_or_four():
    zeros = torch.zeros(1, 2, 11, 4, dtype=torch.float64)
    (term,) = build((2, 5, 1))(zeros, zeros, TokenLayout(2, 5, prefix=1))
    assert torch.linalg.matrix_rank(term.dense()).max() <= 4
    (term,) = build((2, 5, 0))(zeros[:, :, 1:], zeros[:, :, 1:], TokenLayout(2, 5))
    assert torch.linalg.matrix_rank(term.dense()).max() <= 3


@pytest.mark.parametrize("side", [1, 3, 5, 7])
def test_a_square_number_of_heads_is_the_whole_stencil(side):
    """By Euclidean distance alone (0, 4) would come before the corner (3, 3) of the 7x7 one."""
    centers = Quadratic(TokenLayout(2, 3), side**2).centers.tolist()
    half = side // 2
    expected = [(r, c) for r in range(-half, half + 1) for c in range(-half, half + 1)]
    assert sorted(map(tuple, centers)) == expected


@pytest.mark.parametrize(
    ("heads", "offsets"),
    [
        (2, {(0, 0), (-1, 0)}),
        (3, {(0, 0), (-1, 0), (0, -1)}),
        (4, {(0, 0), (-1, 0), (0, -1), (0, 1)}),
        (6, {(0, 0), (-1, 0), (0, -1), (0, 1), (1, 0), (-1, -1)}),
        (8, {(0, 0), (-1, 0), (0, -1), (0, 1), (1, 0), (-1, -1), (-1, 1), (1, -1)}),
        (
            12,
            {(r, c) for r in (-1, 0, 1) for c in (-1, 0, 1)} | {(-2, 0), (0, -2), (0, 2)},
        ),
    ],
)
def test_heads_take_the_nearest_offsets_ties_row_major(heads, offsets):
    centers = Quadratic(TokenLayout(2, 3), heads).centers.tolist()
    assert len(centers) == heads
    assert set(map(tuple, centers)) == offsets


def test_normal_centers_have_the_variance_of_the_paper():
    torch.manual_seed(0)
    centers = Quadratic(TokenLayout(2, 3), 4000, init="normal").centers
    assert 1.9 < centers.var() < 2.1
    assert centers.mean().abs() < 0.1


def test_alpha_and_strength_start_where_told():
    quadratic = Quadratic(TokenLayout(2, 3), 4, alpha=2.5, strength=0.25)
    assert quadratic.alpha.tolist() == [2.5] * 4
    assert quadratic.strength.tolist() == [0.25] * 4


def test_strength_zero_has_no_effect_and_a_gradient():
    layout = TokenLayout(2, 5, prefix=1)
    quadratic = Quadratic(layout, 2, strength=0.0, dtype=torch.float64)
    q, k, v, cotangent = oracles.random_qkv(11)
    out = attend(q, k, v, quadratic(q, k, layout))
    torch.testing.assert_close(out, attend(q, k, v), atol=1e-14, rtol=0)
    out.backward(cotangent)
    assert (quadratic.strength.grad != 0).all()
    assert (quadratic.alpha.grad == 0).all()


def test_the_usual_start_has_an_effect():
    layout = TokenLayout(2, 5)
    q, k, v, _ = oracles.random_qkv(10)
    out = attend(q, k, v, Quadratic(layout, 2, dtype=torch.float64)(q, k, layout))
    assert (out - attend(q, k, v)).abs().max() > 0.1


def test_alpha_zero_still_learns():
    """A squared spread would have no gradient at zero; the centers wait for alpha."""
    layout = TokenLayout(2, 5)
    quadratic = Quadratic(layout, 2, alpha=0.0, dtype=torch.float64)
    q, k, v, cotangent = oracles.random_qkv(10)
    attend(q, k, v, quadratic(q, k, layout)).backward(cotangent)
    assert (quadratic.alpha.grad != 0).all()


def test_refuses_an_unknown_start():
    with pytest.raises(ValueError, match=r"init.*stencil.*normal.*'zero'"):
        Quadratic(TokenLayout(2, 3), 2, init="zero")


def test_refuses_tokens_that_the_layout_does_not_have():
    q, k, _, _ = oracles.random_qkv(9)
    with pytest.raises(ValueError, match=r"10 tokens.*9"):
        build((2, 5, 0))(q, k, TokenLayout(2, 5))
