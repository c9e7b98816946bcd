"""Every private name of torch that posenc uses: each once, with a test of its own.

Where torch has a public name, that is used in its place. A release of torch that moves one of these
fails in `tests/test_torch_names.py` by name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend

F = TypeVar("F", bound=Callable[..., Any])

_KERNELS = {
    SDPBackend.MATH: "math",
    SDPBackend.FLASH_ATTENTION: "flash",
    SDPBackend.EFFICIENT_ATTENTION: "efficient",
    SDPBackend.CUDNN_ATTENTION: "cudnn",
}

NO_BACKWARD = -1  # what torch calls the backward pass of a thread that is in none


def is_tracing() -> bool:
    """Whether `torch.jit.trace` records operations."""
    return torch._C._get_tracing_state() is not None


def constant_under_dynamo(function: F) -> F:
    """As `torch.compiler.assume_constant_result`, without its import of all of Dynamo.

    Dynamo calls the function while it traces, with constants, and does not look inside.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant_under_dynamo
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


def is_exporting() -> bool:
    """Whether `torch.export` traces, strictly or not; `torch.compile` alone is not meant.

    The flag itself rather than `torch.compiler.is_exporting()`, which some versions of PyTorch
    answer by True inside `torch.compile`, too.
    """
    return bool(torch.compiler._is_exporting_flag)


def is_symbolic(size: Any) -> bool:
    """Whether a size is a symbol that stands for many, also where Dynamo shows it as an int."""
    from torch.fx.experimental.symbolic_shapes import has_static_value  # slow to import

    return isinstance(size, (int, torch.SymInt)) and not has_static_value(size)


@constant_under_dynamo
def enabled_sdpa_kernels() -> list[SDPBackend]:
    """The kernels that fused attention may choose from, as the user has set them."""
    return torch.nn.attention._cur_sdpa_kernel_backends()


def chosen_sdpa_kernel(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> str | None:
    """The kernel that fused attention would choose: "flash", "efficient", "cudnn" or "math".

    None where PyTorch does not say, as on a device with a choice of its own.
    """
    try:
        number = torch._fused_sdp_choice(query, key, value, **options)
    except (NotImplementedError, RuntimeError):  # nor would it compute this
        return None
    return _KERNELS.get(SDPBackend(number))
