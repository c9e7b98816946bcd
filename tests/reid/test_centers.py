"""Center loss, and centers that follow."""

import golden_cases
import pytest
import torch
from model.centers import Centers, center_loss


def test_golden():
    case = golden_cases.case("reid_center_loss")
    features, centers = case.leaf("feat"), case.leaf("centers")
    loss = center_loss(features, case["labels"], centers)
    loss.backward()
    torch.testing.assert_close(loss.detach(), case["loss"], rtol=0, atol=1e-5)
    torch.testing.assert_close(features.grad, case["grad_feat"], rtol=0, atol=1e-6)
    torch.testing.assert_close(centers.grad, case["grad_centers"], rtol=0, atol=1e-6)


def test_centers_follow_by_the_rule_of_the_paper():
    generator = torch.Generator().manual_seed(0)
    centers = Centers(4, 3, rate=0.7)
    centers.centers.normal_(generator=generator)
    features = torch.randn(5, 3, generator=generator)
    people = [2, 0, 2, 2, 3]
    expected = centers.centers.clone()
    for k in range(4):
        own = [features[i] for i, person in enumerate(people) if person == k]
        away = sum(centers.centers[k] - one for one in own)
        expected[k] -= 0.7 * away / (1 + len(own))
    centers.follow(features, torch.tensor(people))
    torch.testing.assert_close(centers.centers, expected)


def test_they_arrive_at_the_mean():
    centers, features = Centers(2, 1), torch.tensor([[1.0], [3.0], [7.0]])
    people = torch.tensor([0, 0, 1])
    before = centers(features, people)
    for _ in range(60):
        centers.follow(features, people)
    torch.testing.assert_close(centers.centers, torch.tensor([[2.0], [7.0]]))
    assert before == pytest.approx((1 + 9 + 49) / 3)  # from zero
    assert centers(features, people) == pytest.approx(2 / 3)
    assert not list(centers.parameters())


def test_a_rate_that_overshoots():
    with pytest.raises(ValueError, match=r"rate of centers must be 0 to 1, got 1\.5"):
        Centers(2, 3, 1.5)
