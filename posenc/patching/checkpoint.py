"""The encodings of a patched model: listed, saved and loaded."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from posenc.encodings.base import Encoding, is_finite
from posenc.patching.config import checked, compare, encoding_config, plan_as
from posenc.patching.fold import FoldedBias
from posenc.patching.names import is_of_encoding
from posenc.patching.patch import (
    Model,
    apply_plan,
    find_patched,
    named_backbone,
    patched_backbone,
    planned_state,
    site_modules,
)

_METADATA_KEY = "posenc"
_MAX_METADATA = 2**20
_FLOATS = ("F64", "F32", "F16", "BF16")


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


def save_encodings(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Writes the encodings, and for which model they were made, to one safetensors file.

    Raises:
        ValueError: the model is not patched, or folded; its blocks were wrapped or moved since
            the patch; an encoding has no registered name; or its parameters are not those of a
            fresh one, because it is parametrized (`weight_norm`, `prune`).
        FileNotFoundError: the folder does not exist.
    """
    from safetensors.torch import save_file

    if any(isinstance(encoding, FoldedBias) for encoding in patched_encodings(model).values()):
        raise ValueError(
            "the biases of the model are folded, its tables are gone: save the encodings before "
            "posenc.fold_biases"
        )
    backbone = patched_backbone(model)
    _check_in_place(backbone)
    state = encoding_state_dict(backbone)
    metadata = {_METADATA_KEY: json.dumps(encoding_config(model))}
    _check_loadable(backbone, state)
    _check_folder(path)
    save_file({key: value.contiguous() for key, value in state.items()}, path, metadata=metadata)


def load_encodings(model: Model, path: str | os.PathLike[str]) -> Model:
    """Reads a file of `save_encodings`; a model that is not patched is patched as the file says.

    The file is compared with the model before any of its tensors is read and before memory is
    taken for encodings, so that a damaged file cannot ask for more than it holds.

    Raises:
        ValueError: the file is not from posenc, is damaged or of an unknown format, was made for
            another encoding, layout, depth, width, head count or patch size, or holds values that
            are not finite or no floating point numbers. The first mismatch is named with both
            values; nothing was changed.
    """
    backbone = find_patched(model)
    with _opened(path) as file:
        config = _config_of(file, os.fspath(path))
        if backbone is None:
            _check_tensors(file, planned_state(plan_as(model, config, "file", meta=True)))
            plan = plan_as(model, config, "file")
        else:
            compare(config, encoding_config(model))
            _check_tensors(file, encoding_state_dict(patched_backbone(model)))
        state = _finite_tensors(file, os.fspath(path))
    if backbone is None:
        apply_plan(plan)  # without the warning: the outputs are meant to change
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


def _check_loadable(backbone: Any, state: dict[str, Tensor]) -> None:
    """Raises when a fresh patch, into which a file is loaded, would have other entries."""
    there = {module._posenc.name for module in site_modules(backbone).values()}
    fresh = {
        key: shape
        for key, shape in backbone._posenc_record.shapes.items()
        if f".{key}".rpartition(".posenc.")[0].removeprefix(".") in {"", *there}
    }
    own = {key: list(value.shape) for key, value in state.items()}
    if own != fresh:
        raise ValueError(
            f"the encodings could not be loaded again: the model has {_differing(own, fresh)}, "
            f"where a fresh one has {_differing(fresh, own)}. If they are parametrized, make that "
            "permanent first: torch.nn.utils.parametrize.remove_parametrizations (weight_norm, "
            "spectral_norm, orthogonal), or torch.nn.utils.prune.remove"
        )


def _differing(shapes: dict[str, list[int]], others: dict[str, list[int]]) -> str:
    found = [f"{key} {shape}" for key, shape in shapes.items() if others.get(key) != shape]
    return ", ".join(found[:3]) or "nothing"


def _check_folder(path: str | os.PathLike[str]) -> None:
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"the folder {folder} does not exist: create it, then save")


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise _not_ours(os.fspath(path), error) from error


def _not_ours(path: str, error: Exception) -> ValueError:
    return ValueError(
        f"{path} was not written by posenc.save_encodings, or is damaged "
        f"({type(error).__name__}: {error})"
    )


def _config_of(file: Any, path: str) -> dict[str, Any]:
    text = (file.metadata() or {}).get(_METADATA_KEY, "")
    if len(text) > _MAX_METADATA:
        raise ValueError(
            f"{path} has {len(text)} bytes of metadata, more than {_MAX_METADATA}: it was not "
            "written by posenc.save_encodings, or is damaged"
        )
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _not_ours(path, error) from error
    return checked(config, path)


def _check_tensors(file: Any, expected: dict[str, Tensor]) -> None:
    """Compares names, shapes and dtypes; reads no values."""
    keys = set(file.keys())
    for key in sorted(expected.keys() | keys):
        if key not in keys or key not in expected:
            where = "the file" if key not in keys else "the model"
            raise ValueError(f"the file does not fit this model: {key} is missing in {where}")
        found, wanted = file.get_slice(key), expected[key]
        if found.get_shape() != list(wanted.shape):
            raise ValueError(
                f"the file does not fit this model: {key} is {found.get_shape()} in the file and "
                f"{list(wanted.shape)} in the model (another head count or size?)"
            )
        if wanted.is_floating_point() and found.get_dtype() not in _FLOATS:
            raise ValueError(
                f"the file does not fit this model: {key} is {found.get_dtype()} in the file, and "
                f"the values of a table are floating point numbers ({', '.join(_FLOATS)})"
            )


def _finite_tensors(file: Any, path: str) -> dict[str, Tensor]:
    state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, no mapping
    for key, value in state.items():
        if not is_finite(value):
            raise ValueError(f"{path}: {key} has non-finite values; nothing was loaded")
    return state
