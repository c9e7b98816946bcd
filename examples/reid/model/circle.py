"""Circle loss: similarities that are far from where they should be are pulled harder.

Reference: Sun et al. 2020, arXiv 2002.10857.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from pytorch_metric_learning.losses import CircleLoss
from pytorch_metric_learning.reducers import MeanReducer
from torch import Tensor


def circle_loss(margin: float = 0.25, scale: float = 64.0) -> Callable[[Tensor, Tensor], Tensor]:
    """Circle loss of pairs of images, with all pairs of the batch.

    With cosines `s` of features, positives `p` without the image itself and `n` of others:

        loss = mean_a softplus(logsumexp_p scale [1 + m - s_ap]+ (1 - m - s_ap)
                             + logsumexp_n scale [s_an + m]+ (s_an - m))

    The factors `[...]+` have no gradient. Images of a person with no other image count as 0.

    Args:
        margin: `m`, 0 to 1.
        scale: greater than 0.

    Returns:
        A function of features `[B, D]` and people `[B]` that gives a scalar, computed in float32.

    Raises:
        ValueError: a number is out of its bounds.

    Reference: Sun et al. 2020, arXiv 2002.10857, equations 4 and 6 to 8.
    """
    _check(margin, scale)
    return CircleLoss(m=margin, gamma=scale, reducer=MeanReducer())


def circle_logits(
    cosines: Tensor, labels: Tensor, margin: float = 0.25, scale: float = 64.0
) -> Tensor:
    """Circle loss with people instead of pairs: logits for a cross entropy, `[B, K]`.

        logit_k = scale [1 + m - s_k]+ (s_k - (1 - m))    for the person of the image
        logit_k = scale [s_k + m]+ (s_k - m)              for the others

    The factors `[...]+` have no gradient.

    Args:
        cosines: `[B, K]`, of each image with each person's vector.
        labels: `[B]`, 0 to K - 1.
        margin: `m`, 0 to 1.
        scale: greater than 0.

    Raises:
        ValueError: a number is out of its bounds.

    Reference: Sun et al. 2020, arXiv 2002.10857, section 3.2 (class-level labels).
    """
    _check(margin, scale)
    others = (cosines.detach() + margin).relu() * (cosines - margin)
    own = (1 + margin - cosines.detach()).relu() * (cosines - (1 - margin))
    is_own = labels[:, None] == torch.arange(cosines.shape[1], device=labels.device)
    return scale * own.where(is_own, others)


def _check(margin: float, scale: float) -> None:
    if not 0 <= margin <= 1:
        raise ValueError(f"the margin of a circle loss must be 0 to 1, got {margin}")
    if not 0 < scale < float("inf"):
        raise ValueError(f"the scale of a circle loss must be greater than 0, got {scale}")
