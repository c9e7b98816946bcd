"""What gives the identity loss a logit for each person: linear, or on unit vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from training.config import IDENTITY


class L2Classifier(nn.Linear):
    """L2-constrained softmax: linear on features that all have one length, `W (scale f / |f|)`.

    Reference: Ranjan et al. 2017, arXiv 1703.09507, equation 3.
    """

    def __init__(self, width: int, num_people: int, scale: float) -> None:
        super().__init__(width, num_people, bias=False)
        self.scale = scale

    def forward(self, features: Tensor) -> Tensor:
        """`[B, width]` to `[B, people]`."""
        with torch.autocast(features.device.type, enabled=False):
            return F.linear(self.scale * _unit(features), self.weight)


class CosineClassifier(nn.Linear):
    """Cosines of the features with a vector for each person, times `scale`.

    With a cross entropy this is COCO loss. Here the vectors are parameters with a normalization
    that has a gradient; public code normalizes them in place after each step.

    Reference: Liu et al. 2017, arXiv 1710.00870, equations 5 and 6.
    """

    def __init__(self, width: int, num_people: int, scale: float) -> None:
        super().__init__(width, num_people, bias=False)
        self.scale = scale

    def forward(self, features: Tensor) -> Tensor:
        """`[B, width]` to `[B, people]`."""
        with torch.autocast(features.device.type, enabled=False):
            return self.scale * F.linear(_unit(features), _unit(self.weight))


def make_classifier(kind: str, width: int, num_people: int, scale: float) -> nn.Linear:
    """For an identity loss of the kinds `IDENTITY`; that of `circle` gives cosines alone.

    Raises:
        ValueError: another kind.
    """
    if kind == "softmax":
        classifier = nn.Linear(width, num_people, bias=False)
        nn.init.normal_(classifier.weight, std=0.001)  # as in BNNeck's paper
        return classifier
    if kind == "l2_softmax":
        return L2Classifier(width, num_people, scale)
    if kind in ("coco", "circle"):
        return CosineClassifier(width, num_people, scale if kind == "coco" else 1.0)
    raise ValueError(f"an identity loss is one of {', '.join(IDENTITY)}, got {kind!r}")


def _unit(vectors: Tensor) -> Tensor:
    return F.normalize(vectors if vectors.dtype == torch.float64 else vectors.float(), dim=-1)
