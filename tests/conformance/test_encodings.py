"""Every registered encoding keeps every promise: by being registered, not by being named here."""

import pytest

import posenc
from posenc import memo
from posenc.testing import checks_of
from posenc.testing.subject import LAYOUTS, Subject

SLOW = ("Compiles as one graph", "Exports with torch.export")


def checks():
    for name in posenc.list_encodings():
        for check, function in checks_of(name):
            marks = [pytest.mark.slow] if check in SLOW else []
            yield pytest.param(function, id=f"{name}-{check}", marks=marks)


@pytest.mark.parametrize("check", [*checks()])
def test_promise(check):
    check()


@pytest.mark.parametrize("name", posenc.list_encodings())
def test_a_second_training_step_remembers_nothing_new(name):
    """An index built at each call would be remembered at each call, with all that follows of it."""
    subject, layout = Subject(name, num_heads=2, head_dim=8), LAYOUTS[1]
    encoding = subject.random(layout)
    counts = []
    for _ in range(3):
        subject.run(encoding, layout).sum().backward()
        counts.append(len(memo._entries))
    assert counts[1:] == counts[:1] * 2
