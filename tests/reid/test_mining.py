"""Triplets by all pairs with weights, triplets that are made harder, people with one photo."""

import golden_cases
import pytest
import torch
from model.losses import batch_hard_triplet, weighted_triplet

PEOPLE = torch.tensor([3, 3, 8, 8, 8, 1, 1, 3, 2])  # uneven, and one has a single image
EPSILON = 1e-6  # that fast-reid adds to its sums


def features(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(PEOPLE), 5, generator=generator, dtype=torch.float64)


def far_and_near(x, people, metric, epsilon=0.0):
    """Of each image, in loops; fast-reid shifts the positives alone by their largest distance."""
    for anchor, person in zip(x, people, strict=True):
        own, others = [], []
        for other, other_person in zip(x, people, strict=True):
            cosine = anchor @ other / (anchor.norm() * other.norm())
            gap = torch.stack([(anchor - other).square().sum()]).clamp(min=1e-24).sqrt()[0]
            d = 2 - 2 * cosine if metric == "cosine" else gap
            (own if person == other_person else others).append(d)
        own, others = torch.stack(own), torch.stack(others)
        pull, push = (own - own.detach().max()).exp(), (-others).exp()
        yield (
            (pull * own).sum() / (pull.sum() + epsilon),
            (push * others).sum() / (push.sum() + epsilon),
        )


def oracle(x, people, margin, metric, epsilon=0.0):
    gaps = [far - near for far, near in far_and_near(x, people, metric, epsilon)]
    costs = [(1 + g.exp()).log() if margin is None else (g + margin).clamp(min=0) for g in gaps]
    return torch.stack(costs).mean()


def loss_and_gradient(loss, x, *rest):
    x = x.detach().clone().requires_grad_()
    value = loss(x, *rest)
    value.backward()
    return value.detach(), x.grad


@pytest.mark.parametrize(
    "name",
    [name for name in golden_cases.names("reid_triplet_fastreid_") if name.endswith("hard0")],
)
def test_golden(name):
    """fast-reid is this formula with a number in its sums, and that is all that differs."""
    case = golden_cases.case(name)
    margin = case.hyperparameters["margin"] or None
    metric = "cosine" if case.hyperparameters["norm_feat"] else "euclidean"
    people = case["labels"]
    published = loss_and_gradient(oracle, case["feat"], people, margin, metric, EPSILON)
    torch.testing.assert_close(published, (case["loss"], case["grad_feat"]), rtol=0, atol=2e-6)
    ours = weighted_triplet(margin, metric, allow_single=True)
    torch.testing.assert_close(
        loss_and_gradient(ours, case["feat"], people),
        loss_and_gradient(oracle, case["feat"], people, margin, metric),
    )


@pytest.mark.parametrize("margin", [0.3, None])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_weights_are_their_formula(metric, margin):
    loss = weighted_triplet(margin, metric, allow_single=True)
    found = loss_and_gradient(loss, features(), PEOPLE)
    torch.testing.assert_close(found, loss_and_gradient(oracle, features(), PEOPLE, margin, metric))
    assert found[1].abs().max() > 0.01


def test_others_that_are_all_far_stay_far():
    """With a number in the sums they would be at distance 0."""
    x = torch.tensor([[0.0], [0.0], [30.0], [30.0]])
    people = torch.tensor([0, 0, 1, 1])
    assert weighted_triplet(None)(x, people) < 1e-9
    assert batch_hard_triplet(None)(x, people) < 1e-9


def test_a_hard_factor():
    x, people = torch.tensor([[0.0], [1.0], [4.0], [5.0]]), torch.tensor([0, 0, 1, 1])
    gaps = [1.1 - 0.9 * near for near in (4, 3, 3, 4)]
    found = batch_hard_triplet(3.0, hard_factor=0.1)(x, people)
    assert found.item() == pytest.approx(sum(gap + 3 for gap in gaps) / 4)
    for factor in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=f"hard_factor must be 0 to 1, got {factor}"):
            batch_hard_triplet(hard_factor=factor)


@pytest.mark.parametrize("make", [batch_hard_triplet, weighted_triplet])
def test_a_single_image_is_allowed_where_one_says_so(make):
    x, people = torch.tensor([[0.0], [1.0], [4.0]]), torch.tensor([0, 0, 1])
    with pytest.raises(ValueError, match=r"with a single image of \[1\]"):
        make(1.0)(x, people)
    loss, gradient = loss_and_gradient(make(3.5, allow_single=True), x, people)
    assert loss > 0  # the single image is nearer than the margin
    assert gradient.isfinite().all()
