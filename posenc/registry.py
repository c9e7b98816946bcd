"""Names of encodings, and how to build one."""

from __future__ import annotations

import difflib
import fnmatch
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from posenc.encodings import (
    IRPE,
    PEG,
    HumanPart,
    LearnedAbsolute,
    Quadratic,
    Sinusoidal,
    SwinBias,
)
from posenc.encodings.base import Encoding, check_layout
from posenc.layout import TokenLayout

SIZES = ("num_heads", "head_dim", "embed_dim")
_ENCODINGS: dict[str, type[Encoding]] = {}


def register(name: str, encoding: type[Encoding]) -> None:
    """Makes a class available by name.

    Raises:
        ValueError: the name is taken, or is no lower-case identifier.
        TypeError: not a class derived from AttentionEncoding or TokenEncoding.
    """
    if not (isinstance(encoding, type) and issubclass(encoding, Encoding)):
        raise TypeError(
            f"register: {name!r} must be a subclass of AttentionEncoding or TokenEncoding, got "
            f"{encoding!r}"
        )
    check_name(name)
    known = _ENCODINGS.get(name)
    if known is not None and _origin(known) != _origin(encoding):  # a notebook cell may run twice
        raise ValueError(f"register: {name!r} is taken by {_ENCODINGS[name].__name__}")
    _ENCODINGS[name] = encoding


def _origin(encoding: type) -> tuple[str, str]:
    return encoding.__module__, encoding.__qualname__


def check_name(name: str) -> None:
    """Raises unless `name` can be a key of the `ModuleDict` that a patched module gets."""
    if not (name.isidentifier() and name == name.lower()):
        raise ValueError(f"an encoding's name must be a lower-case identifier, got {name!r}")
    if hasattr(nn.ModuleDict, name) or name in ("training", "posenc"):
        raise ValueError(f"an encoding cannot be named {name!r}, torch modules use that name")


_BUILT_IN: dict[str, type[Encoding]] = {
    "sinusoidal": Sinusoidal,
    "learned": LearnedAbsolute,
    "peg": PEG,
    "irpe": IRPE,
    "swin": SwinBias,
    "quadratic": Quadratic,
    "human_part": HumanPart,
}
for _name, _class in _BUILT_IN.items():
    register(_name, _class)


def list_encodings(pattern: str = "*") -> list[str]:
    """Registered names that match a shell pattern, sorted.

    >>> list_encodings("s*")
    ['sinusoidal', 'swin']
    """
    return sorted(fnmatch.filter(_ENCODINGS, pattern))


def encoding_class(name: str) -> type[Encoding]:
    """The class of a registered name.

    Raises:
        ValueError: unknown, with close matches.
    """
    if name not in _ENCODINGS:
        close = difflib.get_close_matches(name, _ENCODINGS, n=3)
        hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
        raise ValueError(f"unknown encoding {name!r}.{hint} There are: {', '.join(_ENCODINGS)}")
    return _ENCODINGS[name]


def registered_name(encoding: type) -> str | None:
    """The name a class is registered under, or None."""
    return next((name for name, known in _ENCODINGS.items() if known is encoding), None)


def option_names(build: Callable[..., Any]) -> list[str]:
    """Options of an encoding's constructor: its keyword-only arguments, placement aside."""
    parameters = inspect.signature(build).parameters.values()
    return [
        p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in ("device", "dtype")
    ]


def resolved_options(build: Callable[..., Any], options: dict[str, Any]) -> dict[str, Any]:
    """The options with the defaults of those that were not given; ranges become tuples."""
    parameters = inspect.signature(build).parameters
    defaults = {name: parameters[name].default for name in option_names(build)}
    given = {k: tuple(v) if isinstance(v, range) else v for k, v in options.items()}
    return {k: v for k, v in defaults.items() if v is not inspect.Parameter.empty} | given


def check_options(build: Callable[..., Any], options: dict[str, Any], name: str) -> None:
    """Raises when the encoding does not have an option, naming close ones and all."""
    known = option_names(build)
    for option in options:
        if option not in known and option not in ("device", "dtype"):
            close = difflib.get_close_matches(option, known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(
                f"{name} has no option {option!r}.{hint} Its options: {', '.join(known) or 'none'}"
            )


def create_encoding(
    name: str,
    *,
    layout: TokenLayout,
    num_heads: int | None = None,
    head_dim: int | None = None,
    embed_dim: int | None = None,
    **options: Any,
) -> nn.Module:
    """Builds a registered encoding.

    Args:
        name: one of `list_encodings()`.
        layout: the tokens.
        num_heads: heads of the attention; needed by encodings that act there.
        head_dim: width of a head; needed by some of these.
        embed_dim: width of the tokens; needed by encodings that act on tokens.
        **options: the options of that encoding, and `device`, `dtype`.

    Raises:
        ValueError: an unknown name or option (with close matches), a missing size, or a value
            that the encoding refuses.

    >>> create_encoding("swin", layout=TokenLayout(2, 3), num_heads=2).table.shape
    torch.Size([2, 15])
    """
    build = encoding_class(name)
    check_layout(layout, name)
    check_options(build, options, name)
    sizes = {"num_heads": num_heads, "head_dim": head_dim, "embed_dim": embed_dim}
    return build(layout, **needed_sizes(build, sizes, name), **options)


def needed_sizes(
    build: Callable[..., Any], sizes: dict[str, int | None], name: str
) -> dict[str, int | None]:
    """Those of the sizes that the constructor takes.

    Raises:
        ValueError: one without a default is missing.
    """
    parameters = inspect.signature(build).parameters
    for size in SIZES:
        required = size in parameters and parameters[size].default is inspect.Parameter.empty
        if required and sizes[size] is None:
            raise ValueError(f"{name} needs {size}=..., which was not given")
    return {size: sizes[size] for size in SIZES if size in parameters}
