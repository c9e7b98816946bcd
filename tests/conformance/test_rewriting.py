"""Encodings whose terms rewrite the call keep every promise too, in attention and in models."""

import pytest
import torch
from kernel_calls import set_tiles
from rewriting_encodings import ENCODINGS

from posenc.testing import check_backend, checks_of

SLOW = ("Compiles as one graph", "Exports with torch.export")


def checks():
    for name, encoding in ENCODINGS.items():
        for check, function in checks_of(encoding):
            marks = [pytest.mark.slow] if check in SLOW else []
            yield pytest.param(function, id=f"{name}-{check}", marks=marks)


@pytest.mark.parametrize("check", [*checks()])
def test_promise(check):
    check()


@pytest.mark.slow
def test_kernels_in_the_interpreter(monkeypatch):
    pytest.importorskip("posenc.attention.kernels.run", exc_type=ImportError)
    if not torch.cuda.is_available():
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        set_tiles(monkeypatch, 16, 16)
    assert check_backend(ENCODINGS["cosine"], "triton", dtype=torch.float32) > 0
