"""Losses of person re-identification: triplets, of features or patches, and identity."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pytorch_metric_learning.distances import BaseDistance, LpDistance
from torch import Tensor
from torch.nn import functional as F

from model.mining import Mining, hardest, weighted

METRICS = ("euclidean", "cosine")


def batch_hard_triplet(
    margin: float | None = 0.3,
    metric: str = "euclidean",
    *,
    hard_factor: float = 0.0,
    allow_single: bool = False,
) -> Callable[[Tensor, Tensor], Tensor]:
    """Triplet loss of each image with its farthest positive and its nearest negative.

    For features `f` `[B, D]` of people `y` `[B]`, with `q` the hard factor:

        far_a = max_{p: y_p = y_a, p != a} d(f_a, f_p)    near_a = min_{n: y_n != y_a} d(f_a, f_n)
        h_a = (1 + q) far_a - (1 - q) near_a
        loss = mean_a max(0, h_a + margin)    or, without a margin, mean_a log(1 + exp(h_a))

    with `d(f, g) = |f - g|` (`euclidean`) or `2 - 2 cos(f, g)` (`cosine`, fast-reid's convention:
    the squared distance of the normalized features). The mean counts triplets that cost nothing.
    Computed in float32 or better, also under autocast. Where two features are equal, their
    distance has gradient zero.

    Public code counts an image as its own positive, at distance zero, and so gives a person with
    one image a loss. Here such a batch is an error, unless it is allowed; others agree. What
    fast-reid calls margin 0 is the soft margin, here None.

    Args:
        margin: at least 0, or None for the soft margin.
        metric: `euclidean` or `cosine`.
        hard_factor: 0 to 1, by how much triplets are made harder than they are (TransReID).
        allow_single: whether a person may have a single image, at distance 0 from its own.

    Returns:
        A function of features and people that gives a scalar.

    Raises:
        ValueError: an option is none of the above; by the function, shapes do not fit, there are
            fewer than two people, or one has a single image.

    Example:
        >>> loss = batch_hard_triplet(margin=0.5)
        >>> loss(torch.tensor([[0.0], [1.0], [2.0], [4.0]]), torch.tensor([0, 0, 1, 1])).item()
        0.5

    Reference: Hermans et al. 2017, arXiv 1703.07737, equation 5 (batch hard) and section 3 (soft
        margin).
    """
    _check_options(margin, metric, hard_factor)
    return _of_features(hardest, margin, metric, hard_factor, allow_single)


def weighted_triplet(
    margin: float | None = 0.3, metric: str = "euclidean", *, allow_single: bool = False
) -> Callable[[Tensor, Tensor], Tensor]:
    """`batch_hard_triplet` with all pairs, of which hard ones weigh more (`mining.weighted`).

    Raises:
        ValueError: as `batch_hard_triplet`.

    Example:
        >>> loss = weighted_triplet(margin=1.0)
        >>> features = torch.tensor([[0.0], [1.0], [1.0], [0.0]])
        >>> loss(features, torch.tensor([0, 0, 1, 1])).item()  # 1 + e / (1 + e) - 1 / (1 + e)
        1.4621171951293945

    Reference: Ristani and Tomasi 2018, arXiv 1803.10859 (adaptive weights).
    """
    _check_options(margin, metric)
    return _of_features(weighted, margin, metric, 0.0, allow_single)


def patch_triplet(
    margin: float | None = 0.3, metric: str = "euclidean"
) -> Callable[[Tensor, Tensor], Tensor]:
    """`batch_hard_triplet` of images that are compared patch by patch.

    For patches `a`, `b` `[P, C]` of two images, with `d` as in `batch_hard_triplet`:

        D(a, b) = 1/P sum_p d(a_p, b_p)

    so that only patches at the same place of the grid meet. Leave the prefix tokens out. Needs
    memory for `B^2 P` distances, not for `B^2 P C` differences.

    Args:
        margin: at least 0, or None for the soft margin.
        metric: `euclidean` or `cosine`.

    Returns:
        A function of patches `[B, P, C]` and people `[B]` that gives a scalar.

    Raises:
        ValueError: as `batch_hard_triplet`.

    Example:
        >>> patches = torch.tensor([[[0.0], [0.0]], [[0.0], [2.0]], [[3.0], [0.0]], [[3.0], [2.0]]])
        >>> patch_triplet(margin=1.0)(patches, torch.tensor([0, 0, 1, 1])).item()  # 1 - 1.5 + 1
        0.5

    Reference: Hermans et al. 2017, arXiv 1703.07737, equation 5; the mean over patches is ours.
    """
    _check_options(margin, metric)

    def loss(patches: Tensor, people: Tensor) -> Tensor:
        _check_batch(patches, people, "patches", "B, P, C")
        distance = PatchDistance(patches.shape[1], metric)
        return _triplets(patches.flatten(1), people, hardest, margin, distance)

    return loss


def identity_loss(logits: Tensor, labels: Tensor, smoothing: float = 0.1) -> Tensor:
    """Cross entropy with smoothed labels, the mean over the batch.

        loss = -sum_k q_k log softmax(logits)_k,    q_k = smoothing / K + (1 - smoothing) [k = y]

    Args:
        logits: `[B, K]`, computed with in float32 or better.
        labels: `[B]`, from 0 to K - 1: number the people of the training split.
        smoothing: at least 0, less than 1.

    Raises:
        ValueError: a shape, a label or `smoothing` does not fit.

    Reference: Szegedy et al. 2016, arXiv 1512.00567, section 7.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or labels.is_floating_point():
        raise ValueError(
            "identity_loss needs logits [B, K] and integer labels [B], got "
            f"{list(logits.shape)} and {labels.dtype} {list(labels.shape)}"
        )
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing must be at least 0 and less than 1, got {smoothing}")
    least, most = (bound.item() for bound in labels.aminmax())
    if least < 0 or most >= logits.shape[1]:
        raise ValueError(
            f"labels must be 0 to {logits.shape[1] - 1} for {logits.shape[1]} logits, got {least} "
            f"to {most}; number the people of the training split from 0"
        )
    return F.cross_entropy(_precise(logits), labels.long(), label_smoothing=smoothing)


class PatchDistance(BaseDistance):
    """Mean distance of patches at the same place, of images flattened to `[B, P * C]`."""

    def __init__(self, num_patches: int, metric: str) -> None:
        super().__init__(normalize_embeddings=False)
        self.num_patches, self.metric = num_patches, metric

    def compute_mat(self, query: Tensor, reference: Tensor) -> Tensor:
        """`[Q, P * C]` and `[R, P * C]` to `[Q, R]`, by way of `[P, Q, R]`."""
        query, reference = self._by_place(query), self._by_place(reference)
        # In float32 even under autocast. By matrix products for any B: on CUDA, the gradient of
        # the other way takes B^2 P C numbers.
        each = torch.cdist(query, reference, compute_mode="use_mm_for_euclid_dist")
        return (each.square() if self.metric == "cosine" else each).mean(0)

    def _by_place(self, flat: Tensor) -> Tensor:
        patches = flat.unflatten(1, (self.num_patches, -1)).transpose(0, 1)
        return F.normalize(patches, dim=-1) if self.metric == "cosine" else patches


def _of_features(
    mining: Mining, margin: float | None, metric: str, hard_factor: float, allow_single: bool
) -> Callable[[Tensor, Tensor], Tensor]:
    is_cosine = metric == "cosine"
    distance = LpDistance(normalize_embeddings=is_cosine, power=2 if is_cosine else 1)

    def loss(features: Tensor, people: Tensor) -> Tensor:
        _check_batch(features, people, "features", "B, D", allow_single)
        return _triplets(features, people, mining, margin, distance, hard_factor)

    return loss


def _triplets(
    features: Tensor,
    people: Tensor,
    mining: Mining,
    margin: float | None,
    distance: BaseDistance,
    hard_factor: float = 0.0,
) -> Tensor:
    """By hand, because TripletMarginLoss has neither a hard factor nor weights."""
    features = _precise(features)
    oneself = torch.eye(len(people), dtype=torch.bool, device=people.device)
    distances = distance(features).masked_fill(oneself, 0.0)  # matrix products round it
    far, near = mining(distances, people[:, None] == people)
    gap = (1 + hard_factor) * far - (1 - hard_factor) * near
    return (F.softplus(gap) if margin is None else (gap + margin).relu()).mean()


def _precise(numbers: Tensor) -> Tensor:
    return numbers if numbers.dtype == torch.float64 else numbers.float()


def _check_options(margin: float | None, metric: str, hard_factor: float = 0.0) -> None:
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
    if margin is not None and not 0 <= margin < float("inf"):
        raise ValueError(f"margin must be at least 0, or None for the soft margin, got {margin}")
    if not 0 <= hard_factor <= 1:
        raise ValueError(f"hard_factor must be 0 to 1, got {hard_factor}")


def _check_batch(
    features: Tensor, people: Tensor, name: str, axes: str, allow_single: bool = False
) -> None:
    if (
        features.ndim != len(axes.split(", "))
        or 0 in features.shape
        or people.shape != features.shape[:1]
        or people.is_floating_point()
    ):
        raise ValueError(
            f"a triplet loss needs {name} [{axes}], none of them 0, and integer people [B], got "
            f"{list(features.shape)} and {people.dtype} {list(people.shape)}"
        )
    persons, counts = people.unique(return_counts=True)
    single = [] if allow_single else persons[counts == 1].tolist()
    if len(persons) < 2 or single:
        raise ValueError(
            "a triplet needs another image of the same person and an image of another person; got "
            f"{len(people)} images of {len(persons)} people, with a single image of {single}; "
            "sample at least two people with two images each"
        )
