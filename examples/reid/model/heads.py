"""BNNeck: a batch norm between what triplets see and what is classified and searched with.

Luo et al. 2019, arXiv 1903.07071, section 3.5.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from model.classifiers import make_classifier


def add_head(
    module: Any, width: int, num_people: int, identity: str = "softmax", scale: float = 30.0
) -> None:
    """Gives a module its `neck` and its `classifier`, which the identity loss decides."""
    module.neck = nn.BatchNorm1d(width)
    module.neck.bias.requires_grad_(False)  # as in the paper: no shift of the classes' center
    module.classifier = make_classifier(identity, width, num_people, scale)


class Head(nn.Module):
    """Of one part of the body: `[B, width]` to logits `[B, people]`."""

    def __init__(
        self, width: int, num_people: int, identity: str = "softmax", scale: float = 30.0
    ) -> None:
        super().__init__()
        add_head(self, width, num_people, identity, scale)

    def forward(self, features: Tensor) -> Tensor:
        """Logits; what is searched with is `neck(features)`."""
        return self.classifier(self.neck(features))
