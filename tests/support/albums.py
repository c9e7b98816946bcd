"""A tiny training with its logs, opened for pictures, and albums of features made by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_reid
import torch
from data.market import Photo, Splits
from findings.album import open_album
from matplotlib import pyplot as plt
from PIL import Image
from search.features import score
from training.run import train


@pytest.fixture(scope="session")
def logged(data, tmp_path_factory):
    """With what it logs for TensorBoard."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("logged")
    train(tiny_reid.config(tracker="tensorboard"), data, out, quiet=True)
    return out


@pytest.fixture
def album(logged, data):
    yield open_album(logged, data)
    plt.close("all")


def at_angles(album, query, gallery):
    """An album of these rows (person, camera, angle of the feature, picture or None)."""
    photos, features = zip(*(_photos(rows) for rows in (query, gallery)), strict=True)
    data = Splits((), *photos)
    return replace(
        album,
        data=data,
        query=features[0],
        gallery=features[1],
        scores=score(*features, data),
    )


def _photos(rows):
    angles = torch.tensor([angle for _, _, angle, _ in rows], dtype=torch.float64)
    photos = tuple(Photo(path or Path("none.jpg"), who, camera) for who, camera, _, path in rows)
    return photos, torch.stack([angles.cos(), angles.sin()], dim=1)


def picture(path, image):
    Image.fromarray(image.astype(np.uint8)).save(path)
    return path
