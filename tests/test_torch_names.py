"""Each private name of torch that posenc uses does what posenc takes it for."""

import inspect

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from posenc import _torch


@pytest.mark.filterwarnings("ignore:`torch.jit.trace` is")
def test_tracing():
    seen = []

    def function(x):
        seen.append(_torch.is_tracing())
        return x + 1

    function(torch.zeros(1))
    torch.jit.trace(function, torch.zeros(1), check_trace=False)
    assert seen == [False, True]


def test_function_transforms():
    seen = []

    def function(x):
        seen.append(_torch.is_function_transformed())
        return x.sum()

    function(torch.zeros(2))
    torch.func.grad(function)(torch.zeros(2))
    torch.func.vmap(function)(torch.zeros(2, 2))
    assert seen == [False, True, True]


def test_forward_gradients():
    assert not _torch.has_forward_gradients()
    with torch.autograd.forward_ad.dual_level():
        assert _torch.has_forward_gradients()


def test_dispatch_modes():
    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    assert not _torch.has_dispatch_mode()
    with Mode():
        assert _torch.has_dispatch_mode()


def test_backward_tasks():
    x = torch.zeros(1, requires_grad=True)
    tasks = []
    y = x * 2
    y.register_hook(lambda grad: tasks.append(_torch.backward_task()))
    y.backward(retain_graph=True)
    y.backward()
    assert _torch.backward_task() == _torch.NO_BACKWARD
    first, second = tasks
    assert _torch.NO_BACKWARD not in tasks
    assert first != second


def test_storage_addresses():
    tensor = torch.zeros(4)
    assert _torch.storage_address(tensor) == _torch.storage_address(tensor[1:])
    assert _torch.storage_address(tensor) != _torch.storage_address(torch.zeros(4))


def test_uncompiled_frames():
    def inner(x):
        return x + torch.compiler.is_compiling()

    @_torch.run_uncompiled
    def outer(x):
        assert not torch.compiler.is_compiling()
        return inner(x)

    assert torch.compile(outer, backend="eager")(torch.zeros(1)).item() in (0.0, 1.0)


def test_hooks_of_loading():
    module, calls = nn.Linear(1, 1), []
    before = dict(_torch.load_hooks(module))
    module.register_load_state_dict_pre_hook(lambda *_: calls.append(1))
    (key,) = set(_torch.load_hooks(module)) - set(before)
    del _torch.load_hooks(module)[key]
    module.load_state_dict(module.state_dict())
    assert calls == []


def test_compiling_in_place():
    module = nn.Linear(1, 1)
    assert not _torch.is_compiled_in_place(module)
    module.compile(backend="eager")
    assert _torch.is_compiled_in_place(module)


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


@pytest.mark.parametrize("strict", [True, False])
def test_hooks_can_tell_a_strict_load(strict):
    seen = []
    module = nn.Linear(2, 2)
    module.register_load_state_dict_pre_hook(lambda *_: seen.append(_torch.is_strict_load()))
    module.load_state_dict(module.state_dict(), strict=strict)
    assert seen == [strict]
    assert not _torch.is_strict_load()


def test_every_function_has_a_docstring_and_a_test_here():
    names = [name for name, _ in inspect.getmembers(_torch, inspect.isfunction)]
    own = [name for name in names if getattr(_torch, name).__module__ == _torch.__name__]
    assert {"backward_task", "chosen_sdpa_kernel"} <= set(own)
    text = inspect.getsource(inspect.getmodule(test_tracing))
    assert [name for name in own if f"_torch.{name}" not in text] == []
    assert [name for name in own if not getattr(_torch, name).__doc__] == []
