"""Models by their name, and what is loaded into them."""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import posenc
from posenc.cli.errors import UsageError, one_line
from posenc.patching.names import is_of_encoding
from posenc.registry import did_you_mean, encoding_class


def add_size(parser: argparse.ArgumentParser) -> None:
    """The option `--img-size`."""
    parser.add_argument(
        "--img-size",
        nargs=2,
        type=int,
        metavar=("H", "W"),
        help="size of the images in pixels, default that of the model",
    )


def check_encodings(names: str | None) -> None:
    """Raises for a name, or one of several joined by "+", that is not registered."""
    for name in [] if names is None else names.split("+"):
        try:
            encoding_class(name.strip())
        except ValueError as error:
            raise UsageError(str(error)) from None


def create(name: str, img_size: list[int] | None, *, pretrained: bool = False) -> nn.Module:
    """A timm model in eval.

    Raises:
        UsageError: an unknown name, or a size that it cannot have.
        ValueError: there are no pretrained weights, or they cannot be had.
    """
    import timm

    if not timm.is_model(name):
        near = (timm.list_models(f"{name}*") or timm.list_models(f"*{name}*"))[:3]
        raise UsageError(
            f"{name!r} is no timm model.{did_you_mean(near)} timm.list_models() has them, "
            "`posenc list` the encodings"
        )
    _check_tag(name)
    if img_size is not None and min(img_size) < 1:
        raise UsageError(f"--img-size must be positive, got {img_size[0]} {img_size[1]}")
    options = {} if img_size is None else {"img_size": tuple(img_size)}
    # Where there is no network it tells of each retry; the last error is told below.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **options)
    except Exception as error:
        if pretrained:
            raise ValueError(f"no pretrained weights of {name}: {one_line(error)}") from error
        if img_size is None:
            raise
        raise UsageError(f"{name} cannot have images of {img_size}: {error}") from error
    if 0 in getattr(getattr(model, "patch_embed", None), "grid_size", ()):
        raise UsageError(f"--img-size {input_size(model, img_size)} is less than a patch of {name}")
    return model.eval()


def _check_tag(name: str) -> None:
    """Raises unless timm has weights by what follows the dot."""
    import timm

    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        known = ", ".join(timm.list_pretrained(f"{name.partition('.')[0]}.*"))
        raise UsageError(f"{one_line(error)} timm has {known or 'none'}") from None


def input_size(model: Any, img_size: list[int] | None) -> tuple[int, int]:
    """Height and width of images in pixels, as asked for or those that timm trained it with."""
    height, width = img_size or model.pretrained_cfg["input_size"][1:]
    return int(height), int(width)


def patch(model: nn.Module, encoding: str) -> None:
    """Patches the model; what `patch_model` warns of goes to stderr."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        posenc.patch_model(model, encoding)
    for warning in caught:
        print(one_line(str(warning.message)), file=sys.stderr)


def default_tag(name: str) -> str:
    """Of the pretrained weights that timm takes where the name has none, or nothing."""
    import timm

    return str(getattr(timm.get_pretrained_cfg(name), "tag", "")) if "." not in name else ""


def load_weights(model: nn.Module, name: str, path: Path) -> None:
    """Loads pretrained weights into a model that is not patched, as `load_checkpoint` does.

    Files of JAX (`.npz`), in which timm has the first ViTs, are read by the model itself.

    Raises:
        ValueError: the file cannot be read safely, holds encodings, or is that of another model.
    """
    if path.suffix == ".npz":
        _load_npz(model, name, path)
    else:
        _load(model, name, path, advice="; --checkpoint loads encodings")


def _load_npz(model: Any, name: str, path: Path) -> None:
    if not hasattr(model, "load_pretrained"):
        raise ValueError(f"{path}: timm reads no .npz for {name}")
    heads = _classifiers(model)
    own = {key: value for key, value in model.named_parameters() if not key.startswith(heads)}
    with torch.no_grad():
        for value in own.values():
            value.fill_(math.nan)  # what the file does not have stays so
    try:
        model.load_pretrained(str(path))
    except Exception as error:  # of many kinds
        raise ValueError(f"{path} is not a file of {name}: {one_line(error)}") from error
    for key, value in own.items():
        if value.isnan().any():
            raise ValueError(f"{path} is not a file of {name}: {key} is missing in the file")


def load_checkpoint(model: nn.Module, name: str, path: Path, *, encodings: bool) -> None:
    """Loads a state dict of timm or PyTorch, without running code that it may hold.

    Tables of positions are resampled as timm does: from squares, and one of 8x16 patches is taken
    for one of 16x8, which have the same count. The classifier, which attention does not
    depend on, keeps its random weights where the file has one of another size, or none.

    Args:
        model: patched or not.
        name: of the model, for messages.
        path: of the file.
        encodings: load those of posenc too, where the file has any.

    Raises:
        ValueError: the file cannot be read safely, or is that of another model.
    """
    _load(model, name, path, encodings=encodings, advice="; name its encoding by --encoding")


def _load(model: nn.Module, name: str, path: Path, *, advice: str, encodings: bool = True) -> None:
    """As `load_checkpoint`; the advice is for encodings that the model does not have."""
    from timm.models import load_state_dict

    try:
        state = dict(load_state_dict(str(path), weights_only=True))
    except Exception as error:
        raise ValueError(f"{path} is no checkpoint that can be read: {one_line(error)}") from error
    state = _adapted(state, model)
    if not encodings:
        state = {key: value for key, value in state.items() if not is_of_encoding(key)}
    own = model.state_dict()
    heads = _classifiers(model)
    state = {
        key: value
        for key, value in state.items()
        if not key.startswith(heads) or _shape(own.get(key)) == _shape(value)
    }
    _check(state, own, heads, f"{path} is not a checkpoint of {name}", advice)
    try:
        model.load_state_dict(state, strict=False)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{path} does not fit {name}: {one_line(error)}") from error


def _adapted(state: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """As the family in timm converts checkpoints, such as tables of another size, where it can."""
    for cls in type(model).__mro__:  # a patch may have put a class of its own first
        convert = getattr(sys.modules[cls.__module__], "checkpoint_filter_fn", None)
        if convert is not None:
            with contextlib.suppress(Exception):  # what is wrong with it is found below
                return dict(convert(state, model))
    return state


def _classifiers(model: Any) -> tuple[str, ...]:
    names = model.pretrained_cfg.get("classifier") or ()
    return tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))


def _check(
    state: dict[str, Any],
    own: dict[str, Any],
    heads: tuple[str, ...],
    refusal: str,
    advice: str,
) -> None:
    """Raises for the first entry that is missing, too much or of another shape."""
    has_encodings = any(map(is_of_encoding, state))
    for key in own:
        may_be_absent = key.startswith(heads) or (is_of_encoding(key) and not has_encodings)
        if key not in state and not may_be_absent:
            raise ValueError(f"{refusal}: {key} is missing in the file")
    for key, value in state.items():
        if key not in own:
            more = advice if is_of_encoding(key) else ""
            raise ValueError(f"{refusal}: {key} is missing in the model{more}")
        if _shape(value) != _shape(own[key]):
            raise ValueError(
                f"{refusal}: {key} is {_shape(value)} in the file and {_shape(own[key])} in the "
                "model"
            )


def _shape(value: Any) -> list[int] | None:
    return list(value.shape) if isinstance(value, Tensor) else None
