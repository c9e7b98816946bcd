"""What is known of how a photo was taken: its camera, and the view of who is on it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from data.market import NO_VIEW, VIEWS, Photo


def sides_of(photos: Sequence[Photo]) -> Tensor:
    """Camera and view of each photo, `[photos, 2]`."""
    return torch.tensor([(photo.camera, photo.view) for photo in photos]).view(-1, 2)


def known_sides(photos: Sequence[Photo], sie: str) -> dict[str, list[int]]:
    """Cameras and views that are told apart, those of the training photos.

    Args:
        photos: of the training.
        sie: "none", "camera", "view" or "camera+view".

    Raises:
        ValueError: views are asked for, and no photo has one.
    """
    cameras = sorted({photo.camera for photo in photos}) if "camera" in sie else []
    views = sorted({photo.view for photo in photos} - {NO_VIEW}) if "view" in sie else []
    if "view" in sie and not views:
        raise ValueError(
            f"--sie {sie} needs views, and no training photo has one: write {VIEWS} into the "
            "folder of the data set, with a line photo,view and one such as "
            "0002_c1s1_000451_03.jpg,0 for each photo; generate.py writes it"
        )
    return {"cameras": cameras, "views": views}
