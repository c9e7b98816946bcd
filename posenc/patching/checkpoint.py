"""The encodings of a patched model: listed, saved and loaded."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from posenc.encodings.base import Encoding
from posenc.layout import TokenLayout
from posenc.patching.fold import FoldedBias
from posenc.patching.models.examine import Backbone, examine
from posenc.patching.models.others import OTHER
from posenc.patching.names import is_of_encoding
from posenc.patching.patch import (
    apply_plan,
    find_patched,
    named_backbone,
    patched_backbone,
    site_modules,
    unpatch_model,
)
from posenc.patching.plan import make_plan
from posenc.registry import list_encodings

_METADATA_KEY = "posenc"
_CONFIG_KEYS = (
    "encodings",
    "layout",
    "layout_given",
    "windows",
    "sites",
    "share",
    "absolute",
    "backend",
)


def patched_encodings(model: nn.Module) -> dict[str, nn.Module]:
    """`"<site>.<name>"` -> encoding; a shared one, and one at the model's root, once by `name`.

    Raises:
        ValueError: the model is not patched.
    """
    prefix, backbone = named_backbone(model)
    found: dict[str, nn.Module] = {}
    for path, module in backbone.named_modules():
        site, marker, name = f".{path}".rpartition(".posenc.")
        if marker and isinstance(module, Encoding) and "." not in name:
            where = [prefix, site.removeprefix(".")] if site else []
            found[".".join(filter(None, [*where, name]))] = module
    return found


def encoding_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """(name in `model.named_parameters()`, parameter) of every encoding, for an optimizer.

    Raises:
        ValueError: the model is not patched.
    """
    ours = {id(p) for e in patched_encodings(model).values() for p in e.parameters()}
    return ((name, p) for name, p in model.named_parameters() if id(p) in ours)


def encoding_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The entries of `model.state_dict()` that belong to encodings.

    Raises:
        ValueError: the model is not patched.
    """
    prefix, backbone = named_backbone(model)
    state = backbone.state_dict(prefix=prefix and f"{prefix}.")
    start = len(prefix) + 1 if prefix else 0
    return {key: value for key, value in state.items() if is_of_encoding(key[start:])}


def encoding_config(model: nn.Module) -> dict[str, Any]:
    """What `patch_model` was asked for, JSON-able: encodings, options, layout, sites.

    Raises:
        ValueError: the model is not patched, an encoding of it has no registered name, or an
            option is no JSON value.
    """
    backbone = patched_backbone(model)
    # Blocks may have been pruned since.
    there = {module._posenc.name for module in site_modules(backbone).values()}
    asked = dict(backbone._posenc_record.config)
    asked["sites"] = [name for name in asked["sites"] if name in there]
    asked["windows"] = {name: grid for name, grid in asked["windows"].items() if name in there}
    for spec in asked["encodings"]:
        if spec["name"] not in list_encodings():
            raise ValueError(
                f"{spec['name']!r} is not registered, so a file could not name it: call "
                "posenc.register_encoding(name, class) and patch by that name"
            )
    try:
        config: dict[str, Any] = json.loads(json.dumps(asked))
    except TypeError as error:
        raise ValueError(f"an option of the encodings is no JSON value: {error}") from error
    return config


def save_encodings(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Writes the encodings and how they were patched in, to one safetensors file.

    Raises:
        ValueError: the model is not patched, or folded; its blocks were wrapped or moved since
            the patch; or an encoding has no registered name.
    """
    from safetensors.torch import save_file

    if any(isinstance(encoding, FoldedBias) for encoding in patched_encodings(model).values()):
        raise ValueError(
            "the biases of the model are folded, its tables are gone: save the encodings before "
            "posenc.fold_biases"
        )
    _check_in_place(patched_backbone(model))
    metadata = {_METADATA_KEY: json.dumps(encoding_config(model))}
    state = encoding_state_dict(patched_backbone(model))
    save_file({key: value.contiguous() for key, value in state.items()}, path, metadata=metadata)


def load_encodings(model: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
    """Reads a file of `save_encodings`; a model that is not patched is patched as the file says.

    Raises:
        ValueError: the file is not from posenc, was made for another layout, encoding or head
            count, or holds non-finite values. The first mismatch is named; nothing was changed.
    """
    config, state = _read(path)
    if find_patched(model) is not None:
        _compare(config, encoding_config(model))
        _check_state(model, state)
    else:
        _patch_as(model, config, state)
    patched_backbone(model).load_state_dict(state, strict=False)
    return model


def _check_in_place(backbone: nn.Module) -> None:
    """Raises when keys would name modules that a fresh model does not have."""
    for name, module in site_modules(backbone).items():
        if name and name != module._posenc.name:
            raise ValueError(
                f"{module._posenc.name} has been wrapped or moved since the patch and is {name} "
                "now, which a fresh model would not have: save before that, or undo it"
            )


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and tensors of a file, checked as far as is possible without a model."""
    from safetensors import SafetensorError, safe_open

    file_name = os.fspath(path)
    try:
        with safe_open(path, framework="pt") as file:
            config = json.loads((file.metadata() or {})[_METADATA_KEY])
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, no mapping
        missing = [key for key in _CONFIG_KEYS if key not in config]
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{file_name} was not written by posenc.save_encodings, or is damaged ({reason})"
        ) from error
    if missing:
        raise ValueError(f"{file_name} was not written by posenc.save_encodings: no {missing[0]}")
    for key, value in state.items():
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{file_name}: {key} has non-finite values; nothing was loaded")
    return config, state


def _patch_as(model: nn.Module, config: dict[str, Any], state: dict[str, Tensor]) -> None:
    """Patches as the file says, without the warning: the outputs are meant to change."""
    layout = TokenLayout(**config["layout"]) if config["layout_given"] else None
    _compare_layouts(config, examine(model, layout))
    sites = set(config["sites"])
    plan = make_plan(
        model,
        encoding=[spec["name"] for spec in config["encodings"]],
        layout=layout,
        blocks=(lambda name: name in sites) if sites else None,
        share=config["share"],
        absolute=config["absolute"],
        backend=config["backend"],
        options={spec["name"]: spec["options"] for spec in config["encodings"]},
    )
    apply_plan(plan)
    try:
        _check_state(model, state)
    except ValueError:
        unpatch_model(model)
        raise


def _compare_layouts(config: dict[str, Any], backbone: Backbone) -> None:
    source, made_for = backbone.layout, config.get("model")
    if backbone.family is OTHER and made_for != type(backbone.module).__name__:
        raise ValueError(
            f"the file does not fit this model: it was made for a {made_for}, and this is a "
            f"{type(backbone.module).__name__}; pass the part that was patched, such as "
            "model.visual"
        )
    windows = {n: list(g) for n, g in backbone.windows().items() if n in config["sites"]}
    current = {"layout": source and vars(source.default()), "windows": windows}
    _compare({key: config[key] for key in current}, current)


def _compare(saved: dict[str, Any], current: dict[str, Any]) -> None:
    for key in _CONFIG_KEYS[:-1]:  # the backend may differ
        if key in current and saved[key] != current[key]:
            hint = (
                ". Create the model with that input size, load, then call set_input_size"
                if key in ("layout", "windows")
                else ""
            )
            raise ValueError(
                f"the file does not fit this model. Of the file, {key}: {saved[key]}; of the "
                f"model: {current[key]}{hint}"
            )


def _check_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    current = encoding_state_dict(patched_backbone(model))
    for key in sorted(current.keys() | state.keys()):
        if key not in state or key not in current:
            where = "the file" if key not in state else "the model"
            raise ValueError(f"the file does not fit this model: {key} is missing in {where}")
        if current[key].shape != state[key].shape:
            raise ValueError(
                f"the file does not fit this model: {key} is {list(state[key].shape)} in the file "
                f"and {list(current[key].shape)} in the model (another head count or size?)"
            )
