"""Every backend computes what the reference computes, for every registered encoding."""

import pytest
import torch
from kernel_calls import set_tiles

import posenc
from posenc import TokenLayout
from posenc.attention.api import BACKENDS
from posenc.encodings.base import AttentionEncoding
from posenc.registry import encoding_class
from posenc.testing import check_backend

NAMES = [n for n in posenc.list_encodings() if issubclass(encoding_class(n), AttentionEncoding)]
ON_DEVICES = {"triton", "flex"}


@pytest.fixture
def interpreted(monkeypatch):
    """Triton's interpreter, with tiles of which these small layouts have several."""
    pytest.importorskip("posenc.attention.kernels.run", exc_type=ImportError)
    if not torch.cuda.is_available():
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        set_tiles(monkeypatch, 16, 16)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", [b for b in BACKENDS if b not in ON_DEVICES])
def test_equals_the_reference(backend, name):
    """In float32: the suite of encodings compares in float64."""
    check_backend(name, backend, dtype=torch.float32)


@pytest.mark.slow
@pytest.mark.kernels
@pytest.mark.parametrize("name", NAMES)
def test_kernels_in_the_interpreter_equal_the_reference(interpreted, name):
    # Two layouts: the interpreter is slow, and the kernels have tests of their own.
    layouts = (TokenLayout(3, 7, 1), TokenLayout(2, 5, 0))
    if not check_backend(name, "triton", dtype=torch.float32, layouts=layouts):
        q = torch.zeros(1, 2, layouts[1].num_tokens, 8, requires_grad=True)
        encoding = posenc.create_encoding(name, layout=layouts[1], num_heads=2, head_dim=8)
        reason = posenc.explain(q, q, q, encoding(q, q, layouts[1])).reasons["triton"]
        assert "the gradient of a dense bias" in reason


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b not in ON_DEVICES])
def test_computes_at_least_one_encoding(backend):
    assert any(check_backend(name, backend) for name in NAMES)


def test_a_backend_that_is_wrong_is_noticed(monkeypatch):
    tiled = BACKENDS["tiled"]

    class Wrong:
        rejects = staticmethod(tiled.rejects)

        @staticmethod
        def compute(call):
            return tiled.compute(call) * (1 + 1e-4)

    monkeypatch.setitem(BACKENDS, "tiled", Wrong)
    with pytest.raises(AssertionError, match="not close"):
        check_backend("swin", "tiled")
