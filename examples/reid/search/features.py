"""Features of photos, and how well they find each other, in a few numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from data.batches import photo_loader
from data.market import Photo, Splits
from data.sides import sides_of
from model.network import ReIDNetwork
from torch import Tensor

from search.labels import Labels
from search.retrieval import Scores, score_features


def embed(
    network: ReIDNetwork,
    batches: Iterable[tuple[Tensor, Any]],
    *,
    flip: bool = False,
    sides: Tensor | None = None,
) -> list[Tensor]:
    """Features of batches of a `photo_loader`, on the device of the network.

    With `flip` the mean of those of an image and of its mirror image, after BNNeck and before
    any normalization: the one with the longer feature counts more. `sides` are those of all
    photos, by `sides_of`; without them cameras and views count as unknown.
    """
    device, was_training = network.mean.device, network.training
    network.eval()
    try:
        with torch.inference_mode():
            return [
                _embed(network, images.to(device), None if sides is None else sides[at.cpu()], flip)
                for images, at in batches
            ]
    finally:
        network.train(was_training)


def _embed(network: ReIDNetwork, images: Tensor, sides: Tensor | None, flip: bool) -> Tensor:
    sides = sides if sides is None else sides.to(images.device)
    features = network(images, sides).float()
    return (features + network(images.flip(-1), sides).float()) / 2 if flip else features


def embed_photos(
    network: ReIDNetwork,
    photos: Sequence[Photo],
    size: tuple[int, int],
    *,
    flip: bool = False,
    are_cameras_known: bool = True,
) -> Tensor:
    """`[photos, width]`, on the CPU."""
    sides = sides_of(photos) if are_cameras_known else None
    return torch.cat(embed(network, photo_loader(photos, size), flip=flip, sides=sides)).cpu()


def score(query: Tensor, gallery: Tensor, data: Splits) -> Scores:
    """By cosine, as BNNeck does."""
    return score_features(query, gallery, Labels.of(data.query, data.gallery))


def check_has_answers(data: Splits) -> None:
    """Before the training, not after it.

    Raises:
        ValueError: no query has a photo of its person by another camera in the gallery.
    """
    cameras: dict[int, set[int]] = {}
    for photo in data.gallery:
        cameras.setdefault(photo.person, set()).add(photo.camera)
    if not any(cameras.get(photo.person, set()) - {photo.camera} for photo in data.query):
        raise ValueError(
            f"none of {len(data.query)} queries has a photo of its person by another camera among "
            f"the {len(data.gallery)} of the gallery, so that nothing could be evaluated"
        )


def summarize(scores: Scores) -> dict[str, float]:
    """As JSON."""
    return {
        "mAP": scores.mean_average_precision,
        "mINP": scores.mean_inverse_negative_penalty,
        **{f"rank-{n}": scores.rank(n) for n in (1, 5, 10)},
        "queries": int(scores.is_valid.sum()),
    }


def describe(scores: Scores) -> str:
    """In a line."""
    parts = summarize(scores)
    return ", ".join(f"{name} {100 * parts[name]:.1f}" for name in ("mAP", "mINP", "rank-1"))
