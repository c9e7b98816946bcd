"""Logits of the identity loss: linear, of one length, of cosines."""

import golden_cases
import pytest
import torch
from model.classifiers import L2Classifier, make_classifier
from torch.nn import functional as F


@pytest.mark.parametrize("name", golden_cases.names("reid_coco_s"))
def test_coco(name):
    """The recorded gradient leaves the normalization out: ours is its part across the vectors."""
    case = golden_cases.case(name)
    vectors = case["centroids"].T
    classifier = make_classifier("coco", 8, 4, case.hyperparameters["scale"]).double()
    with torch.no_grad():
        classifier.weight.copy_(case["centroids_raw"].T)
    torch.testing.assert_close(F.normalize(classifier.weight.detach()), vectors, rtol=0, atol=1e-6)
    with torch.no_grad():
        classifier.weight.copy_(vectors)
    features = case.leaf("feat")
    loss = F.cross_entropy(classifier(features), case["labels"])
    loss.backward()
    torch.testing.assert_close(loss.detach(), case["loss"], rtol=0, atol=1e-5)
    torch.testing.assert_close(features.grad, case["grad_feat"], rtol=0, atol=1e-5)
    recorded = case["grad_centroids"].T
    across = recorded - (recorded * vectors).sum(1, keepdim=True) * vectors
    torch.testing.assert_close(classifier.weight.grad, across, rtol=0, atol=1e-5)
    assert across.abs().max() > 0.1


def test_coco_does_not_see_lengths():
    classifier = make_classifier("coco", 3, 5, 6.0)
    x = torch.tensor([[1.0, -2.0, 0.5]])
    before = classifier(x).detach()
    with torch.no_grad():
        classifier.weight *= 7
    torch.testing.assert_close(classifier(40 * x), before)


def test_features_of_one_length():
    classifier = make_classifier("l2_softmax", 3, 5, 6.0)
    assert isinstance(classifier, L2Classifier)
    x = torch.tensor([[3.0, 0.0, -4.0], [0.0, 1.0, 0.0]])
    expected = torch.stack([classifier.weight @ (6 * one / one.norm()) for one in x])
    torch.testing.assert_close(classifier(x), expected)
    torch.testing.assert_close(classifier(9 * x), expected)
    with torch.no_grad():
        classifier.weight *= 7
    torch.testing.assert_close(classifier(x), 7 * expected)  # those of people keep theirs


def test_circle_has_cosines():
    classifier = make_classifier("circle", 3, 5, 30.0)
    assert classifier(torch.randn(20, 3)).abs().max() <= 1 + 1e-6


def test_linear_logits_are_as_they_were():
    classifier = make_classifier("softmax", 300, 5, 30.0)
    assert classifier.weight.std().item() == pytest.approx(0.001, rel=0.1)
    x = torch.randn(2, 300)
    torch.testing.assert_close(classifier(x), x @ classifier.weight.T)


@pytest.mark.parametrize("kind", ["l2_softmax", "coco", "circle"])
def test_sixteen_bits_are_not_enough_for_unit_vectors(kind):
    classifier, x = make_classifier(kind, 8, 5, 30.0), torch.randn(3, 8)
    expected = classifier(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(classifier(x), expected)


def test_another_kind():
    with pytest.raises(ValueError, match="one of softmax, l2_softmax, coco, circle, got 'arc'"):
        make_classifier("arc", 3, 5, 1.0)
