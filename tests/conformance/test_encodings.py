"""Every registered encoding keeps every promise: by being registered, not by being named here."""

import pytest

import posenc
from posenc.testing import checks_of

SLOW = ("Compiles as one graph", "Exports with torch.export")


def checks():
    for name in posenc.list_encodings():
        for check, function in checks_of(name):
            marks = [pytest.mark.slow] if check in SLOW else []
            yield pytest.param(function, id=f"{name}-{check}", marks=marks)


@pytest.mark.parametrize("check", [*checks()])
def test_promise(check):
    check()
