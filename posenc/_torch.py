"""Every private or experimental name of PyTorch that is used here, each behind a function.

`tests/test_torch_names.py` tests each, so that a new version of PyTorch fails there first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

F = TypeVar("F", bound=Callable[..., Any])

_KERNELS = {
    SDPBackend.MATH: "math",
    SDPBackend.FLASH_ATTENTION: "flash",
    SDPBackend.EFFICIENT_ATTENTION: "efficient",
    SDPBackend.CUDNN_ATTENTION: "cudnn",
}


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


def constant_under_dynamo(function: F) -> F:
    """As `torch.compiler.assume_constant_result`, without its import of all of Dynamo.

    Dynamo calls the function while it traces, with constants, and does not look inside.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


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
