"""Data in the format of published data sets."""

import gzip

import numpy as np
import pytest


def write_idx(path, numbers):
    sides = np.array(numbers.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(bytes([0, 0, 8, numbers.ndim]) + sides + numbers.tobytes()))


@pytest.fixture
def fashion(tmp_path):
    """Fashion-MNIST's files, 120 and 40 images, whose first pixel is their number."""
    rng = np.random.default_rng(0)
    for part, count in {"train": 120, "t10k": 40}.items():
        images = rng.integers(256, size=(count, 28, 28)).astype(np.uint8)
        images[:, 0, 0] = np.arange(count)
        write_idx(tmp_path / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte.gz", np.arange(count, dtype=np.uint8) % 10)
    return tmp_path
