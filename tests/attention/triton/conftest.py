"""The fused kernels on CUDA, or else in Triton's interpreter."""

from pathlib import Path

import interpreter
import pytest
import torch
from kernel_calls import DEVICE, poison, set_tiles

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    """What is slow here is a long proof of the kernels."""
    for item in items:
        if item.path.is_relative_to(HERE) and item.get_closest_marker("slow"):
            item.add_marker("kernels")


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch):
    if DEVICE == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        interpreter.repair(monkeypatch)


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch):
    poison(monkeypatch)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Several of them in each direction, wider than high."""
    if DEVICE == "cpu":
        set_tiles(monkeypatch, 16, 32)


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
