"""Each private name of PyTorch does what is asked of it."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

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


@pytest.mark.filterwarnings("ignore")
def test_constant_under_dynamo():
    @_torch.constant_under_dynamo
    def facts(device):
        return (len(str(torch.__version__)), str(device)), None  # what Dynamo would not trace

    def ask(x):
        (number, name), nothing = facts(x.device)
        return x + number + (name == "cpu") + (nothing is None)

    compiled = torch.compile(ask, fullgraph=True, backend="eager")
    assert torch.equal(compiled(torch.zeros(2)), ask(torch.zeros(2)))


def test_enabled_sdpa_kernels():
    with sdpa_kernel([SDPBackend.MATH, SDPBackend.FLASH_ATTENTION]):
        enabled = _torch.enabled_sdpa_kernels()
        assert set(enabled) == {SDPBackend.MATH, SDPBackend.FLASH_ATTENTION}
    assert SDPBackend.CUDNN_ATTENTION in _torch.enabled_sdpa_kernels()


def test_chosen_sdpa_kernel():
    q = torch.zeros(1, 1, 4, 8)
    assert _torch.chosen_sdpa_kernel(q, q, q) == "flash"
    mask = torch.zeros(4, 4, requires_grad=True)
    assert _torch.chosen_sdpa_kernel(q, q, q, attn_mask=mask) == "math"
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):  # of which the CPU has none
        assert _torch.chosen_sdpa_kernel(q, q, q) is None
