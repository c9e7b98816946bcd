"""Center loss: the features of a person come near their center, which follows them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Centers(nn.Module):
    """A center for each person of the training, no parameter: the optimizer leaves it alone.

        loss = mean_a |f_a - c_{y_a}|^2
        c_k <- c_k - rate sum_{a: y_a = k} (c_k - f_a) / (1 + n_k),    n_k = |{a: y_a = k}|

    The paper's loss is half of it, and a sum. Centers start at zero.

    Args:
        num_people: their number K.
        width: of the features, D.
        rate: 0 to 1, of the second line; the paper's alpha.

    Raises:
        ValueError: `rate` is out of its bounds.

    Reference: Wen et al. 2016, A discriminative feature learning approach for deep face
        recognition, equations 2 and 4, algorithm 1.
    """

    def __init__(self, num_people: int, width: int, rate: float = 0.5) -> None:
        super().__init__()
        if not 0 <= rate <= 1:
            raise ValueError(f"the rate of centers must be 0 to 1, got {rate}")
        self.rate = rate
        self.register_buffer("centers", torch.zeros(num_people, width))

    def forward(self, features: Tensor, people: Tensor) -> Tensor:
        """The loss of features `[B, D]` of people `[B]` from 0 to K - 1."""
        return center_loss(features, people, self.centers)

    @torch.no_grad()
    def follow(self, features: Tensor, people: Tensor) -> None:
        """Moves the centers of the people in a batch."""
        away = self.centers[people] - features
        total = torch.zeros_like(self.centers).index_add_(0, people, away)
        counts = people.bincount(minlength=len(self.centers))
        self.centers -= self.rate * total / (1 + counts)[:, None]


def center_loss(features: Tensor, people: Tensor, centers: Tensor) -> Tensor:
    """Mean squared distance of features `[B, D]` from the centers `[K, D]` of people `[B]`."""
    return (features - centers[people]).square().sum(1).mean()
