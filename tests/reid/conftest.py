"""The example's own modules, and tiny data for them; skipped where its extra is not installed."""

import pytest

pytest.importorskip("accelerate", reason="pip install posenc[reid]")
pytest.importorskip("pytorch_metric_learning", reason="pip install posenc[reid]")

from albums import album, logged  # noqa: F401
from tiny_reid import data, folder  # noqa: F401
from trainings import trained  # noqa: F401
