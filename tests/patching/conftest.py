import pytest


@pytest.fixture
def path(tmp_path):
    """Where a test saves encodings."""
    return tmp_path / "encodings.safetensors"
