import math

import golden_cases
import layouts
import oracle_checks
import oracles
import pytest
import torch
import torch.nn.functional as F

from posenc import ConViT, TokenLayout, attend
from posenc.attention import attention_matrix

BACKENDS = ("reference", "sdpa")  # the usual half has no term, which others refuse


def build(layout, heads=2, **options):
    return oracles.randomize(ConViT(TokenLayout(*layout), heads, dtype=torch.float64, **options))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", golden_cases.names("convit_"))
def test_equals_the_published_code(name, backend):
    golden = golden_cases.case(name)
    heads, layout = golden.hyperparameters["heads"], TokenLayout(*golden.hyperparameters["grid"])
    weights = {key[2:]: golden.leaf(key) for key in golden.arrays if key.startswith("p.")}
    x = golden.leaf("x")
    convit = ConViT(layout, heads, dtype=torch.float64)
    with torch.no_grad():
        convit.gate.copy_(golden["p.gating_param"])
        convit.weight.copy_(golden["p.pos_proj.weight"])

    def linear(x, layer):
        return F.linear(x, weights[f"{layer}.weight"], weights.get(f"{layer}.bias"))

    def split(x):
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)

    q, k = map(split, linear(x, "qk").chunk(2, -1))
    v = split(linear(x, "v"))
    terms = convit(q, k, layout)
    torch.testing.assert_close(attention_matrix(q, k, v, terms), golden["attn"], **golden.close)
    out = attend(q, k, v, terms, backend=backend)
    out = linear(out.transpose(1, 2).flatten(2), "proj")
    torch.testing.assert_close(out, golden["out"], **golden.close)
    out.backward(golden["grad_out"])
    torch.testing.assert_close(x.grad, golden["grad_x"], **golden.close)
    own = {"gating_param": convit.gate.grad, "pos_proj.weight": convit.weight.grad}
    # The bias of the projection of positions is the same for all keys: softmax does not see it.
    for key in weights.keys() - own.keys() - {"pos_proj.bias"}:
        own[key] = weights[key].grad
    for key, grad in own.items():
        torch.testing.assert_close(grad, golden[f"grad.{key}"], **golden.close)


@pytest.mark.parametrize("name", golden_cases.names("convit_"))
def test_the_local_start_is_the_published_one(name):
    golden = golden_cases.case(name)
    if not golden.hyperparameters["local_init"]:
        return
    heads, s = (golden.hyperparameters[key] for key in ("heads", "locality_strength"))
    weight = ConViT(TokenLayout(2, 3), heads, locality_strength=s, dtype=torch.float64).weight
    torch.testing.assert_close(weight.detach(), golden["init_pos_proj_weight"])


def gated(convit, layout):
    """The formula, in loops."""
    width, prefix = layout[1:]

    def entry(i, j):
        offset = oracle_checks.key_minus_query(i, j, width, prefix)
        if offset is None:
            return torch.zeros(1, convit.num_heads, dtype=torch.float64)
        row, column = offset
        r = torch.tensor([column, row, row**2 + column**2], dtype=torch.float64)
        return (convit.weight * r).sum(-1)[None]

    def expected(q, k, v):
        usual, _ = oracles.attention(q, k, v)
        mask = torch.zeros(usual.shape[2], usual.shape[2], dtype=torch.float64)
        mask[prefix:, :prefix] = -math.inf
        bias = oracles.build_bias(*layout, entry)
        positional, _ = oracles.attention(q, k, v, bias, mask, scale=0.0)
        gate = convit.strength / (1 + (-convit.gate).exp())
        mixed = (1 - gate[:, None, None]) * usual + gate[:, None, None] * positional
        return torch.cat([usual[:, :, :prefix], mixed[:, :, prefix:]], 2)

    return expected


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_equals_the_oracle(layout):
    convit = build(layout)
    oracle_checks.equals(convit, layout, gated(convit, layout), backends=BACKENDS)


def test_nine_heads_are_a_convolution_on_a_rectangle_with_cls():
    """Gate open, far locality: each head shifts the patches by its offset, borders replicated."""
    layout = TokenLayout(4, 5, prefix=1)
    convit = ConViT(layout, 9, locality_strength=60.0, gate=40.0, dtype=torch.float64)
    q, k, v, _ = oracles.random_qkv(layout.num_tokens, 9)
    out = attend(q, k, v, convit(q, k, layout))[:, :, 1:].unflatten(2, layout.grid)
    images = v[:, :, 1:].unflatten(2, layout.grid)
    padded = F.pad(images.permute(0, 1, 4, 2, 3).flatten(0, 1), (1, 1, 1, 1), mode="replicate")
    padded = padded.unflatten(0, v.shape[:2]).permute(0, 1, 3, 4, 2)
    offsets = [(row, column) for column in range(3) for row in range(3)]
    for head, (row, column) in enumerate(offsets):
        shifted = padded[:, head, row : row + 4, column : column + 5]
        torch.testing.assert_close(out[:, head], shifted, atol=1e-9, rtol=0)
    usual = attend(q, k, v)[:, :, :1]
    torch.testing.assert_close(attend(q, k, v, convit(q, k, layout))[:, :, :1], usual)


@pytest.mark.parametrize(
    ("heads", "rest"),
    [(2, [(-1, 0)]), (3, [(-1, 0), (0, -1)]), (6, [(-1.5, -0.5), (-1.5, 0.5)])],
)
def test_heads_beyond_the_square_take_the_nearest_offsets(heads, rest):
    weight = ConViT(TokenLayout(2, 3), heads).weight[math.isqrt(heads) ** 2 :]
    assert weight.tolist() == [[2 * column, 2 * row, -1] for row, column in rest]


def test_a_random_start_has_the_spread_of_a_linear_layer():
    torch.manual_seed(0)
    weight = ConViT(TokenLayout(2, 3), 3000, init="random").weight
    assert weight.abs().max() <= 3**-0.5
    assert 0.32 < weight.std() < 0.345


def test_strength_zero_has_no_effect_and_a_gradient():
    layout = TokenLayout(2, 5, prefix=1)
    convit = ConViT(layout, 2, strength=0.0, dtype=torch.float64)
    q, k, v, cotangent = oracles.random_qkv(11)
    out = attend(q, k, v, convit(q, k, layout))
    torch.testing.assert_close(out, attend(q, k, v), atol=1e-14, rtol=0)
    out.backward(cotangent)
    assert (convit.strength.grad != 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init": "zero"}, r"ConViT: init must be one of 'local', 'random', got 'zero'"),
        ({"gate": math.inf}, "gate must be a finite number, got inf"),
        ({"locality_strength": "x"}, "locality_strength must be a finite number, got 'x'"),
        ({"strength": None}, "strength must be a finite number, got None"),
    ],
)
def test_refuses_what_does_not_exist(options, message):
    with pytest.raises(ValueError, match=message):
        ConViT(TokenLayout(2, 3), 2, **options)
