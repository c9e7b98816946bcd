"""Each private name of PyTorch does what is asked of it."""

import pytest
import torch

from posenc import _torch


class Ask(torch.nn.Module):
    """Notes what a function says about the first side of its input."""

    def __init__(self, question):
        super().__init__()
        self.question = question

    def forward(self, x):
        return x + int(self.question(x.shape[0]))


def exported(question, dynamic, strict):
    shapes = ({0: torch.export.Dim("side")},) if dynamic else None
    module = Ask(question)
    program = torch.export.export(module, (torch.zeros(3),), dynamic_shapes=shapes, strict=strict)
    return program.module()(torch.zeros(3))[0].item() == 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("strict", [True, False])
def test_is_exporting_in_export(strict):
    assert exported(lambda side: _torch.is_exporting(), dynamic=False, strict=strict)
    assert not _torch.is_exporting()


@pytest.mark.filterwarnings("ignore")
def test_is_exporting_is_false_in_compile():
    compiled = torch.compile(Ask(lambda side: _torch.is_exporting()), backend="eager")
    assert compiled(torch.zeros(3))[0].item() == 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("dynamic", [True, False])
def test_is_symbolic_in_export(dynamic, strict):
    assert exported(_torch.is_symbolic, dynamic, strict) == dynamic


def test_is_symbolic_of_plain_values():
    assert not any(_torch.is_symbolic(value) for value in (3, True, 3.0, "3", None))
