"""Every private or experimental name of PyTorch that is used here, each behind a function.

`tests/test_torch_names.py` tests each, so that a new version of PyTorch fails there first.
"""

from __future__ import annotations

from typing import Any

import torch


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
