import golden_cases
import oracles
import pytest
import torch

from posenc import LearnedAbsolute, TokenLayout

POLICY_CASES = [
    name for name in golden_cases.names("abs_resample") if "bicubic" in name
]  # no policy is bilinear


def tokens(layout, dim=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (2, oracles.num_tokens(*layout), dim)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def build(layout, dim=6, seed=0, **options):
    return oracles.randomize(
        LearnedAbsolute(TokenLayout(*layout), dim, dtype=torch.float64, **options), seed
    )


@pytest.mark.parametrize("layout", [(2, 5, 0), (7, 4, 1), (1, 6, 2), (6, 1, 5)])
@pytest.mark.parametrize("policy", ["timm", "hf"])
def test_adds_one_row_per_token(layout, policy):
    learned = build(layout, policy=policy)
    x, cotangent = tokens(layout).requires_grad_(), tokens(layout, seed=1)
    out = learned(x, TokenLayout(*layout))
    assert torch.equal(out, x + learned.table)
    out.backward(cotangent)
    torch.testing.assert_close(learned.table.grad, cotangent.sum(0))
    torch.testing.assert_close(x.grad, cotangent)


@pytest.mark.parametrize("name", POLICY_CASES)
def test_resampling_equals_timm_with_and_without_antialias(name):
    golden = golden_cases.case(name)
    options = golden.hyperparameters
    prefix = options["prefix_tokens"]
    old = TokenLayout(*options["old_h_w"], prefix)
    new = TokenLayout(*options["new_h_w"], prefix)
    policy = "timm" if options["antialias"] else "hf"
    learned = LearnedAbsolute(old, 8, policy=policy, dtype=torch.float64)
    learned.load_state_dict({"table": golden["pos_embed"][0]})
    out = learned(torch.zeros_like(golden["out"]), new)
    torch.testing.assert_close(out, golden["out"], **golden.close)
    assert torch.equal(out[:, :prefix], golden["pos_embed"][:, :prefix])
    out.backward(golden["grad_out"])
    torch.testing.assert_close(learned.table.grad, golden["grad_pos_embed"][0], **golden.close)


def test_policies_differ_and_only_away_from_the_stored_layout():
    timm, hf = (build((7, 4, 1), policy=policy) for policy in ("timm", "hf"))
    assert torch.equal(timm.table, hf.table)
    for used, differs in [((7, 4, 1), False), ((3, 2, 1), True)]:
        x = tokens(used)
        difference = timm(x, TokenLayout(*used)) - hf(x, TokenLayout(*used))
        assert (difference.abs().max() > 0.01) == differs


@pytest.mark.parametrize(("old", "used"), [((2, 8, 1), (4, 4, 1)), ((16, 8, 0), (8, 16, 0))])
def test_equal_counts_of_another_shape_are_resampled(old, used):
    """timm before 1.0.31 returned a 2x8 table unchanged for 4x4."""
    learned = build(old)
    x = torch.zeros(1, oracles.num_tokens(*used), 6, dtype=torch.float64)
    assert (learned(x, TokenLayout(*used))[0] - learned.table).abs().max() > 0.1


def test_the_stored_table_stays():
    """There and back through another size would drift."""
    learned = build((4, 3, 1))
    stored = learned.table.detach().clone()
    learned(tokens((7, 7, 1)), TokenLayout(7, 7, prefix=1))
    assert torch.equal(learned.table, stored)
    x = tokens((4, 3, 1))
    assert torch.equal(learned(x, TokenLayout(4, 3, prefix=1)), x + stored)


def test_shape_and_start():
    learned = LearnedAbsolute(TokenLayout(2, 5, prefix=2), 6)
    assert {n: tuple(p.shape) for n, p in learned.named_parameters()} == {"table": (12, 6)}
    x = tokens((2, 5, 2)).float()
    assert torch.equal(learned(x, TokenLayout(2, 5, prefix=2)), x)


def test_the_start_of_the_paper_is_small_and_not_zero():
    torch.manual_seed(0)
    table = LearnedAbsolute(TokenLayout(14, 14, prefix=1), 64, init="paper").table
    assert 0.015 < table.std() < 0.025
    assert (table != 0).any(1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "nearest"}, r"policy.*timm.*hf.*'nearest'"),
        ({"init": "ones"}, r"init.*zero.*paper.*'ones'"),
    ],
)
def test_refuses_what_does_not_exist(options, message):
    with pytest.raises(ValueError, match=message):
        LearnedAbsolute(TokenLayout(2, 3), 6, **options)


@pytest.mark.parametrize("prefix", [0, 2])
def test_refuses_another_number_of_prefix_tokens(prefix):
    learned = build((2, 5, 1))
    with pytest.raises(ValueError, match=rf"1 prefix tokens.* {prefix}"):
        learned(tokens((2, 5, prefix)), TokenLayout(2, 5, prefix))


def test_refuses_tokens_that_the_layout_does_not_have():
    learned = build((2, 5, 1))
    with pytest.raises(ValueError, match=r"11 tokens.*10"):
        learned(tokens((2, 5, 0)), TokenLayout(2, 5, prefix=1))
