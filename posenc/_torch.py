"""Every private name of torch that posenc uses: each once, with a test of its own.

Where torch has a public name, that is used in its place. A release of torch that moves one of these
fails in `tests/test_torch_names.py` by name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

NO_BACKWARD = -1  # what torch calls the backward pass of a thread that is in none


def is_tracing() -> bool:
    """Whether `torch.jit.trace` records operations."""
    return torch._C._get_tracing_state() is not None


def is_function_transformed() -> bool:
    """Whether a transform of `torch.func` is at work (vmap, grad, jvp)."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def has_forward_gradients() -> bool:
    """Whether a level of forward-mode differentiation is open."""
    return torch.autograd.forward_ad._current_level >= 0


def has_dispatch_mode() -> bool:
    """Whether a dispatch mode sees all operations, such as that of fake tensors."""
    return torch._C._len_torch_dispatch_stack() > 0


def backward_task() -> int:
    """Which backward pass this thread is in, `NO_BACKWARD` in none."""
    return torch._C._current_graph_task_id()


def storage_address(tensor: Tensor) -> int:
    """Identity of the memory of a tensor, the same for its views."""
    storage: Any = tensor.untyped_storage()
    return storage._cdata


def run_uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, whose own frame torch.compile runs as it is; what it calls may be compiled."""
    from torch._dynamo.eval_frame import skip_code  # slow to import

    skip_code(function.__code__)
    return function


def load_hooks(module: nn.Module) -> dict[int, Any]:
    """The hooks that run before `load_state_dict`; there is no public way to find one again."""
    return module._load_state_dict_pre_hooks


def is_strict_load() -> bool:
    """Whether the `load_state_dict` that runs now is strict: torch does not tell its hooks."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code is not nn.Module.load_state_dict.__code__:
        frame = frame.f_back
    return frame is not None and bool(frame.f_locals["strict"])


def is_compiled_in_place(module: nn.Module) -> bool:
    """Whether `module.compile()` was called."""
    return module._compiled_call_impl is not None
