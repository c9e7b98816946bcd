"""What the user asked for: names, classes or callables, with their options."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from posenc.encodings.base import Encoding
from posenc.layout import TokenLayout
from posenc.registry import (
    check_name,
    check_options,
    did_you_mean,
    encoding_class,
    needed_sizes,
    option_names,
    registered_name,
)

# One encoding by name, class or builder, or several.
OneEncoding: TypeAlias = str | type[Encoding] | Callable[..., Encoding]
EncodingLike: TypeAlias = OneEncoding | Sequence[OneEncoding]


@dataclass
class Spec:
    """One encoding to build.

    Args:
        name: registry name, or the class's or function's name in snake case.
        build: class or callable.
        options: keyword arguments for `build`.
    """

    name: str
    build: Callable[..., Any]
    options: dict[str, Any] = field(default_factory=dict)

    def create(
        self, layout: TokenLayout, sizes: dict[str, int | None], device: Any, dtype: Any
    ) -> Any:
        """Builds the encoding for these sizes (`posenc.registry.SIZES`)."""
        if isinstance(self.build, type):
            needed = needed_sizes(self.build, sizes, self.name)
            place = {"device": device, "dtype": dtype}
            taken = inspect.signature(self.build).parameters
            place = {name: value for name, value in place.items() if name in taken}
            encoding = self.build(layout, **needed, **self.options, **place)
            return encoding.to(device=device, dtype=dtype)
        values = (sizes["num_heads"], sizes["head_dim"], sizes["embed_dim"])
        encoding = self.build(layout, *values, **self.options)
        if not isinstance(encoding, Encoding):
            raise TypeError(
                f"{self.name}: the callable must return a posenc.AttentionEncoding or "
                f"posenc.TokenEncoding, got {type(encoding).__name__}"
            )
        return encoding.to(device=device, dtype=dtype)


def parse_specs(encoding: EncodingLike, options: dict[str, Any]) -> list[Spec]:
    """Specs of `patch_model(encoding=...)`, each with its share of the options.

    Raises:
        ValueError: an unknown name or option, an ambiguous option, a repeated encoding.
        TypeError: something that is no name, class, callable or list of these.
    """
    specs = [_spec(item) for item in _items(encoding)]
    names = [spec.name for spec in specs]
    repeated = {name for name in names if names.count(name) > 1}
    if not specs or repeated:
        raise ValueError(f"encoding must name each encoding once, got {', '.join(names) or 'none'}")
    for name in names:
        check_name(name)
    for option, value in options.items():
        if option in ("device", "dtype"):
            raise ValueError(
                f"patch_model has no option {option!r}: encodings take device and dtype of the "
                "modules that they go to; move the model with .to(...)"
            )
        _assign(specs, option, value)
    for spec in specs:
        if isinstance(spec.build, type):
            check_options(spec.build, spec.options, spec.name)
    return specs


def _items(encoding: Any) -> Sequence[Any]:
    if isinstance(encoding, str):
        return [part.strip() for part in encoding.split("+")]
    if isinstance(encoding, (list, tuple)):
        return [item for part in encoding for item in _items(part)]
    return [encoding]


def _spec(item: Any) -> Spec:
    if isinstance(item, str):
        return Spec(item, encoding_class(item))
    if isinstance(item, type) and issubclass(item, Encoding):
        return Spec(registered_name(item) or _snake_case(item.__name__), item)
    if callable(item) and not isinstance(item, (type, Encoding)):
        name = getattr(item, "__name__", type(item).__name__)
        return Spec(_snake_case(name) if name.isidentifier() else "custom", item)
    raise TypeError(
        "encoding must be a name, an encoding class, a callable (layout, num_heads, head_dim, "
        f"embed_dim) -> encoding, or a list of these, got {item!r}"
    )


def _assign(specs: list[Spec], option: str, value: Any) -> None:
    """Gives `name=dict(...)` to the encoding of that name, a bare option to its only owner."""
    for spec in specs:
        if spec.name == option and isinstance(value, dict):
            _give(spec, value)
            return
    _give(_owner(specs, option, value), {option: value})


def _give(spec: Spec, options: dict[str, Any]) -> None:
    for option, value in options.items():
        if option in spec.options:
            raise ValueError(
                f"{spec.name} got {option!r} twice, as {option}=... and in {spec.name}=dict(...): "
                f"{spec.options[option]!r} and {value!r}; pass it once"
            )
        spec.options[option] = value


def _owner(specs: list[Spec], option: str, value: Any) -> Spec:
    if len(specs) == 1:
        return specs[0]
    owners = [spec for spec in specs if option in option_names(spec.build)]
    if len(owners) > 1:
        names = ", ".join(spec.name for spec in owners)
        raise ValueError(
            f"option {option!r} is ambiguous, {names} have it: pass it by encoding, such as "
            f"{owners[0].name}=dict({option}={value!r})"
        )
    if not owners:
        known = sorted({o for spec in specs for o in option_names(spec.build)})
        hint = did_you_mean(difflib.get_close_matches(option, known, n=1))
        raise ValueError(
            f"none of {', '.join(spec.name for spec in specs)} has an option {option!r}.{hint} "
            f"Their options: {', '.join(known)}"
        )
    return owners[0]


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.strip("<>")).lower()
