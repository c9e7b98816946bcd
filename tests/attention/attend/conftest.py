import pytest

from posenc.attention.backends import tiled


@pytest.fixture(autouse=True)
def many_tiles(monkeypatch):
    """A few rows each, although everything here is small."""
    monkeypatch.setattr(tiled, "CPU_SCORES", 20)
