"""Data and a training so small that a test can run it."""

import json

import pytest
from data.market import read_dataset
from generate import Recipe, write
from training.config import Config

RECIPE = Recipe(train_people=8, test_people=4, cameras=2, photos=4, distractors=2, junk=2)
VIT = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "pos_embed": "none"}
PARTS = {"stride": 6, "sie": "camera", "parts": "jigsaw", "num_parts": 2, "pool": "token+avg"}


def config(**changes):
    numbers = {
        "vit_args": json.dumps(VIT),
        "height": 32,
        "width": 16,
        "people": 4,
        "photos": 2,
        "epochs": 3,
        "warmup_epochs": 1,
        "evaluate_every": 2,
        "checkpoint_every": 1,
        "tracker": "none",
    }
    return Config(**{**numbers, **changes})


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("reid") / "pedestrians"
    write(path, RECIPE)
    return path


@pytest.fixture(scope="session")
def data(folder):
    return read_dataset(folder)
