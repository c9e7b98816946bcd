"""Circle loss, of pairs and of people."""

import golden_cases
import pytest
import torch
from model.circle import circle_logits, circle_loss
from torch.nn import functional as F


@pytest.mark.parametrize("name", golden_cases.names("reid_circle_pairwise_"))
def test_pairs(name):
    case = golden_cases.case(name)
    x = case.leaf("feat")
    numbers = case.hyperparameters
    loss = circle_loss(numbers["margin"], numbers["gamma"])(x, case["labels"])
    loss.backward()
    torch.testing.assert_close(loss.detach(), case["loss"], rtol=1e-7, atol=0)
    torch.testing.assert_close(x.grad, case["grad_feat"], rtol=0, atol=1e-5)
    assert case["grad_feat"].abs().max() > 1


def test_people():
    case = golden_cases.case("reid_circle_class_logits")
    cosines = F.normalize(case["feat"]) @ F.normalize(case["weight"]).T
    numbers = case.hyperparameters
    logits = circle_logits(cosines, case["labels"], numbers["m"], numbers["s"])
    torch.testing.assert_close(logits, case["logits"], rtol=1e-4, atol=2e-3)
    assert case["logits"].abs().max() > 10


def test_the_factors_have_no_gradient():
    cosines = torch.tensor([[0.5, 0.2]], requires_grad=True)
    circle_logits(cosines, torch.tensor([0]), 0.25, 8.0).sum().backward()
    expected = torch.tensor([[8 * (1.25 - 0.5), 8 * (0.2 + 0.25)]])
    torch.testing.assert_close(cosines.grad, expected)


@pytest.mark.parametrize(
    ("numbers", "rule"),
    [
        ((-0.1, 64.0), "margin of a circle loss must be 0 to 1, got -0.1"),
        ((0.25, 0.0), r"scale of a circle loss must be greater than 0, got 0\.0"),
    ],
)
def test_refused(numbers, rule):
    with pytest.raises(ValueError, match=rule):
        circle_loss(*numbers)
    with pytest.raises(ValueError, match=rule):
        circle_logits(torch.zeros(1, 2), torch.tensor([0]), *numbers)
