"""What optimizers ask a model: timm's `no_weight_decay` and `group_matcher`, extended."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from posenc.patching.names import is_of_encoding


def no_weight_decay(method: Callable[..., Any] | None) -> Callable[..., Any]:
    """The model's set, plus every parameter of an encoding: position tables do not decay."""

    def extended(self: Any) -> set[str]:
        own = set() if method is None else set(method(self))
        return own | {n for n, _ in self.named_parameters() if is_of_encoding(n)}

    return functools.wraps(method)(extended) if method is not None else extended


def group_matcher(method: Callable[..., Any] | None) -> Callable[..., Any] | None:
    """The model's groups for layer-wise decay; encodings at the root belong to the stem."""
    if method is None:
        return None

    @functools.wraps(method)
    def extended(self: Any, coarse: bool = False) -> dict[str, Any]:
        groups = dict(method(self, coarse=coarse))
        stem = groups.get("stem", [])
        if isinstance(stem, str):
            groups["stem"] = rf"{stem}|^posenc\."
        else:
            groups["stem"] = [*stem, (r"^posenc\.", None)]
        return groups

    return extended
