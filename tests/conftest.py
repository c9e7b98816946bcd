import gc
import importlib.util
import os

import pytest
import torch

if importlib.util.find_spec("triton") and not torch.cuda.is_available():
    # Triton's interpreter runs kernels on the CPU; it must be asked for before the import.
    os.environ["TRITON_INTERPRET"] = "1"
    import posenc.attention.kernels.run  # noqa: F401

    del os.environ["TRITON_INTERPRET"]


@pytest.fixture(autouse=True)
def _deterministic():
    """Every test starts from the same random state, on one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


def pytest_collection_finish():
    """What tests and modules hold will not be freed: the collector need not look at it."""
    gc.collect()
    gc.freeze()
