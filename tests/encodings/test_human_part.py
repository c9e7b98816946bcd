import math

import oracles
import pytest
import torch

from posenc import HumanPart, TokenLayout, attend

BACKENDS = ["reference", "sdpa"]
LAYOUTS = [(2, 5, 0), (7, 4, 1), (1, 6, 2), (8, 1, 5), (6, 3, 0)]


def build(layout, *, seed=0, heads=2, **options):
    return oracles.randomise(
        HumanPart(TokenLayout(*layout), heads, strength=1.0, dtype=torch.float64, **options), seed
    )


def centered(bias):
    """Without the constant per query, which softmax does not see."""
    return bias - bias.mean(-1, keepdim=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("parts", [5, 3])
def test_equals_the_definition(layout, parts):
    human = build(layout, parts=parts)
    q, k, v, cotangent = oracles.random_qkv(oracles.num_tokens(*layout))
    parameters = dict(human.named_parameters())
    expected_bias = oracles.human_part_bias(parameters, *layout)
    expected, _ = oracles.attention(q, k, v, expected_bias)
    leaves = [q, k, v, *parameters.values()]
    wanted = torch.autograd.grad(expected, leaves, cotangent)
    for backend in BACKENDS:
        terms = human(q, k, TokenLayout(*layout))
        bias = sum(term.dense() for term in terms)
        torch.testing.assert_close(centered(bias), centered(expected_bias), atol=1e-10, rtol=0)
        out = attend(q, k, v, terms, backend=backend)
        torch.testing.assert_close(out, expected, atol=1e-10, rtol=0)
        for name, grad, want in zip(
            ["q", "k", "v", *parameters], torch.autograd.grad(out, leaves, cotangent), wanted,
            strict=True,
        ):  # fmt: skip
            torch.testing.assert_close(
                grad, want, atol=1e-10, rtol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize("used", [(6, 3, 1), (5, 2, 1), (3, 4, 4)])
def test_another_layout_needs_no_resampling(used):
    """Coordinates are relative to the crop; all prefix tokens share u and w."""
    human = build((2, 5, 1))
    q, k, _, _ = oracles.random_qkv(oracles.num_tokens(*used))
    bias = sum(term.dense() for term in human(q, k, TokenLayout(*used)))
    expected = oracles.human_part_bias(dict(human.named_parameters()), *used)
    torch.testing.assert_close(centered(bias), centered(expected), atol=1e-10, rtol=0)


def test_affinity_acts_on_the_part_of_the_key():
    """A[head, part of the query, part of the key], not symmetric: the head looks at the shins."""
    layout = TokenLayout(16, 3)
    human = HumanPart(layout, 1, strength=20.0, dtype=torch.float64)
    with torch.no_grad():
        human.affinity.zero_()
        human.affinity[0, 0, 4] = 1.0
        human.log_vertical_extent.fill_(5.0)
        human.log_horizontal_extent.fill_(5.0)
    zeros = torch.zeros(1, 1, 48, 4, dtype=torch.float64)
    eye = torch.eye(48, dtype=torch.float64)[None, None]
    attention = attend(zeros, zeros, eye, human(zeros, zeros, layout))[0, 0].reshape(16, 3, 16, 3)
    rows = attention.sum((1, 3)) / 3
    assert rows[0].argmax() >= 13
    assert rows[0, 13:].sum() > 0.5
    torch.testing.assert_close(rows[15], torch.full_like(rows[15], 1 / 16), atol=0.02, rtol=0)


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_the_factors_fill_one_padded_block(prefix):
    """Rank parts + 3 = 8, prefix tokens included."""
    zeros = torch.zeros(1, 2, 15 + prefix, 4, dtype=torch.float64)
    (term,) = build((5, 3, prefix))(zeros, zeros, TokenLayout(5, 3, prefix))
    assert term.left.shape[-1] == term.right.shape[-1] == 8


def test_start():
    human = HumanPart(TokenLayout(16, 8, prefix=1), 3, dtype=torch.float64)
    values = {name: parameter.detach() for name, parameter in human.named_parameters()}
    expected = {
        "part_centers": torch.tensor([1 / 16, 3 / 16, 7 / 16, 10 / 16, 14 / 16]),
        "log_part_width": torch.tensor([math.log(0.1)]),
        "affinity": torch.eye(5).expand(3, 5, 5),
        "log_vertical_extent": torch.full((3,), math.log(0.3)),
        "log_horizontal_extent": torch.full((3,), math.log(0.6)),
        "strength": torch.zeros(3),
        "prefix_query": torch.zeros(3, 5),
        "prefix_key": torch.zeros(3, 5),
    }
    assert values.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(values[name], value.double(), atol=1e-6, rtol=0)


def test_no_prefix_parameters_without_prefix_tokens():
    """A parameter that never has a gradient would stop distributed training."""
    names = {name for name, _ in HumanPart(TokenLayout(4, 2), 2).named_parameters()}
    assert names.isdisjoint({"prefix_query", "prefix_key"})
    assert "affinity" in names


@pytest.mark.parametrize("parts", [1, 2, 7])
def test_any_number_of_parts(parts):
    human = HumanPart(TokenLayout(4, 2, prefix=1), 2, parts=parts)
    assert human.affinity.shape == (2, parts, parts)
    assert human.prefix_query.shape == human.prefix_key.shape == (2, parts)
    centers = human.part_centers
    assert centers.shape == (parts,)
    assert (centers > 0).all()
    assert (centers < 1).all()
    assert (centers.diff() > 0).all()


def test_no_effect_at_the_start_and_a_gradient_of_the_strength_only():
    layout = TokenLayout(4, 3, prefix=2)
    human = HumanPart(layout, 2, dtype=torch.float64)
    q, k, v, cotangent = oracles.random_qkv(14)
    out = attend(q, k, v, human(q, k, layout))
    torch.testing.assert_close(out, attend(q, k, v), atol=1e-14, rtol=0)
    out.backward(cotangent)
    for name, parameter in human.named_parameters():
        assert (parameter.grad != 0).any() == (name == "strength"), name


def test_strength_opens_every_parameter():
    layout = TokenLayout(4, 3, prefix=2)
    human = build((4, 3, 2))
    q, k, v, cotangent = oracles.random_qkv(14)
    attend(q, k, v, human(q, k, layout)).backward(cotangent)
    for name, parameter in human.named_parameters():
        assert (parameter.grad != 0).any(), name


@pytest.mark.parametrize("shift", [-3.0, 7.0])
def test_prefix_query_counts_up_to_a_constant(shift):
    """u is projected to zero sum; otherwise the window of the keys would leak into it."""
    human = build((4, 3, 1))
    q, k, v, _ = oracles.random_qkv(13)
    layout = TokenLayout(4, 3, prefix=1)
    before = attend(q, k, v, human(q, k, layout))
    with torch.no_grad():
        human.prefix_query += shift
    torch.testing.assert_close(attend(q, k, v, human(q, k, layout)), before, atol=1e-10, rtol=0)


@pytest.mark.parametrize("parts", [0, -2])
def test_refuses_no_parts(parts):
    with pytest.raises(ValueError, match=rf"parts.*{parts}"):
        HumanPart(TokenLayout(2, 3), 2, parts=parts)


def test_refuses_tokens_that_the_layout_does_not_have():
    q, k, _, _ = oracles.random_qkv(9)
    with pytest.raises(ValueError, match=r"10 tokens.*9"):
        build((2, 5, 0))(q, k, TokenLayout(2, 5))


def test_refuses_prefix_tokens_that_it_has_no_parameters_for():
    q, k, _, _ = oracles.random_qkv(11)
    with pytest.raises(ValueError, match=r"0 prefix tokens.* 1"):
        build((2, 5, 0))(q, k, TokenLayout(2, 5, prefix=1))
