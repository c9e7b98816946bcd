"""What is trained, and how fast: the flags of parameters and the groups of an optimizer."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from posenc.encodings.base import check_number
from posenc.patching.checkpoint import encoding_parameters
from posenc.patching.patch import Model, named_backbone


def train_only_encodings(model: Model, also: Iterable[str] = ()) -> Model:
    """Switches gradients on for the encodings and off for the rest of a patched model.

    Only `requires_grad` changes. Dropout and the statistics of batch normalization follow
    `model.train()` and `model.eval()` as before. The table that `absolute="hide"` hides stays
    off. `posenc.unpatch_model` leaves the flags as they are here, those of that table included:
    call `model.requires_grad_(True)` to train the whole model again.

    Args:
        model: a patched model.
        also: names of modules or parameters in `model` that stay trainable, such as `("head",)`.

    Raises:
        TypeError: `also` is one string instead of several.
        ValueError: the model is not patched, its encodings have no parameters (they are folded),
            a name is unknown (with close matches) or has no parameters that could be trained.

    Returns:
        The same model.
    """
    ours = {id(parameter) for _, parameter in encoding_parameters(model)}
    if not ours:
        raise ValueError(
            "the encodings of the model have no parameters: some kinds have none, and folded ones "
            "have none any more"
        )
    if isinstance(also, str) or not isinstance(also, Iterable):
        raise TypeError(f"also must be names such as ('head',), got {also!r}")
    _, backbone = named_backbone(model)
    record = backbone._posenc_record
    hidden = None if record.hidden is None else backbone.get_parameter(record.hidden)
    chosen = {id(p) for name in also for p in _parameters_of(model, name, hidden)}
    trained = (ours | chosen) - {id(hidden)}
    for parameter in model.parameters():
        if parameter.is_floating_point():  # quantized weights have no gradient
            parameter.requires_grad_(id(parameter) in trained)
    backbone._posenc_record = dataclasses.replace(record, table_required_grad=id(hidden) in chosen)
    return model


def _parameters_of(model: nn.Module, name: str, hidden: nn.Parameter | None) -> list[nn.Parameter]:
    """Those of the module or parameter of this name."""
    named = dict(model.named_parameters(remove_duplicate=False))
    found = [p for n, p in named.items() if n == name or n.startswith(f"{name}.")]
    known = {*named, *(n for n, _ in model.named_modules())} - {""}
    if name not in known:
        close = difflib.get_close_matches(str(name), known, n=3)
        hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
        children = ", ".join(n for n, _ in model.named_children())
        raise ValueError(
            f"also={name!r} names no module or parameter of the model.{hint} Its modules are "
            f"{children}"
        )
    if not any(p.is_floating_point() and p is not hidden for p in found):
        raise ValueError(
            f"also={name!r} has no parameters that could be trained"
            + (': absolute="hide" hides this table' if found == [hidden] else "")
        )
    return found


def parameter_groups(
    model: nn.Module, *, lr: float, encoding_lr: float, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Groups for an optimizer, with a learning rate of their own for the encodings.

    The encodings get `encoding_lr` and no weight decay: it would pull positions towards none.
    The rest gets `lr` and `weight_decay`; parameters of fewer than two dimensions (biases and
    norms) and those that the model's `no_weight_decay()` names get no decay, as with timm's
    `param_groups_weight_decay`. Parameters without `requires_grad` are left out, every other one
    is in exactly one group, and groups without parameters are left out.

    >>> import timm, torch
    >>> from posenc import patch_model
    >>> vit = timm.create_model("vit_tiny_patch16_224", img_size=(32, 48), depth=2)
    >>> groups = parameter_groups(patch_model(vit, "swin"), lr=1e-4, encoding_lr=1e-2)
    >>> torch.optim.AdamW(groups).param_groups[-1]["lr"]
    0.01

    Args:
        model: a patched model.
        lr: of the model's own parameters.
        encoding_lr: of the encodings.
        weight_decay: of the model's own parameters that decay.

    Raises:
        ValueError: the model is not patched, nothing in it is trainable, or a number is negative
            or not finite.
    """
    for name, value in (("lr", lr), ("encoding_lr", encoding_lr), ("weight_decay", weight_decay)):
        if check_number(value, name, "parameter_groups") < 0:
            raise ValueError(f"parameter_groups: {name} must not be negative, got {value!r}")
    groups: dict[str, dict[str, Any]] = {
        "decay": {"params": [], "lr": lr, "weight_decay": weight_decay},
        "no decay": {"params": [], "lr": lr, "weight_decay": 0.0},
        "encodings": {"params": [], "lr": encoding_lr, "weight_decay": 0.0},
    }
    for kind, parameter in _trainable(model):
        groups[kind]["params"].append(parameter)
    filled = [group for group in groups.values() if group["params"]]
    if not filled:
        raise ValueError("no parameter of the model is trainable: requires_grad is off everywhere")
    return filled


def _trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Every trainable parameter once, after the kind of its group."""
    ours = {id(parameter) for _, parameter in encoding_parameters(model)}
    skip = _no_weight_decay(model)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in ours:
            yield "encodings", parameter
        elif parameter.ndim <= 1 or any(fnmatch.fnmatch(name, pattern) for pattern in skip):
            yield "no decay", parameter
        else:
            yield "decay", parameter


def _no_weight_decay(model: nn.Module) -> set[str]:
    """Names and patterns that the model, or the vision transformer in it, leaves out of decay."""
    prefix, backbone = named_backbone(model)
    named = {f"{prefix and f'{prefix}.'}{n}" for n in _names(backbone)}
    return named | _names(model)


def _names(model: Any) -> set[str]:
    return set(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else set()
