"""How far an image is from its person and how near others come: of the hardest pairs or of all."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Mining = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def hardest(distances: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
    """The farthest positive and the nearest negative of each row, `[B]` and `[B]`.

    Args:
        distances: `[B, B]`, zero where an image meets itself.
        same: `[B, B]`, whether two images show one person; an image and itself do.

    Reference: Hermans et al. 2017, arXiv 1703.07737, equation 5.
    """
    far = distances.masked_fill(~same, -torch.inf).max(1).values
    return far, distances.masked_fill(same, torch.inf).min(1).values


def weighted(distances: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
    """Mean distances that weigh hard pairs more, `[B]` and `[B]`.

        far_a = sum_p softmax_p(d_ap) d_ap      near_a = sum_n softmax_n(-d_an) d_an

    The image itself is among its positives `p`. Gradients flow through the weights. fast-reid adds
    1e-6 to the sums of the exponentials, which the paper does not have: with it `near` becomes 0
    where all others are far. Here it is left out.

    Args:
        distances: `[B, B]`, zero where an image meets itself.
        same: `[B, B]`, whether two images show one person; an image and itself do.

    Reference: Ristani and Tomasi 2018, arXiv 1803.10859 (adaptive weights).
    """
    far = distances.masked_fill(~same, -torch.inf).softmax(1)
    near = (-distances).masked_fill(same, -torch.inf).softmax(1)
    return (far * distances).sum(1), (near * distances).sum(1)
