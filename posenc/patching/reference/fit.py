"""The values of a checkpoint under the names of a model, and whether they fit."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from posenc.encodings.base import unfit
from posenc.layout import TokenLayout
from posenc.patching.names import is_of_encoding
from posenc.patching.reference.grids import sized_absolute, sized_table
from posenc.patching.reference.places import Places, matched
from posenc.patching.reference.reading import Entry, Reading
from posenc.patching.reference.source import Grid, Source
from posenc.patching.reference.state import listed

# A name in one of both only -> how a timm model gets the other.
_ADVICE_ON_NAMES = {
    r".*(gamma_\d|\.ls\d\.)": "layer scale is init_values= of the model",
    r"(fc_)?norm\.": 'norm stands before pooling (global_pool="token"), fc_norm after it ("avg")',
    r".*(qkv\.bias|q_bias|v_bias)": "biases of queries and values are qkv_bias=",
}
# The same, or of another shape.
_ADVICE = {
    r"head\.": "the class count of the checkpoint is num_classes= of the model "
    "(0: leave the keys of the head out); model.reset_classifier changes it afterwards",
    r"pos_embed": 'a model has no absolute table with pos_embed="none", or hides it by '
    'patch_model(..., absolute="hide"); rows for prefix tokens are no_embed_class=False',
    r"patch_embed\.": "patches are patch_size= and in_chans=",
}


@dataclass
class Fit:
    """What will be loaded.

    Args:
        target: name -> tensor of the model.
        values: name -> value for it.
        resized: remarks.
        left_out: keys that are not loaded, as the source says.
        unknown: keys that the model has nothing for.
    """

    target: dict[str, Tensor]
    values: dict[str, Tensor] = field(default_factory=dict)
    resized: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    def put(self, name: str, key: str, value: Tensor, remark: str = "") -> None:
        """One value; a key is noted whose name the model lacks, or has from another key."""
        if name not in self.target or name in self.values:
            self.unknown.append(key)
            return
        self.values[name] = value
        if remark:
            self.resized.append(f"{name}: {remark}")


def fit_tables(
    fit: Fit, source: Source, reading: Reading, places: Places, grid: Grid | None
) -> set[str]:
    """Puts the parameters of encodings; returns the names of all that there are."""
    names: set[str] = set()
    for encoding, mine in places.items():
        theirs = matched(source, encoding, reading, mine)
        for site, module in mine.items():
            start = f"{site}.posenc.{encoding}." if site else f"posenc.{encoding}."
            names |= {f"{start}{name}" for name in module.state_dict()}
            _fit_encoding(fit, source, start, module, theirs.get(site, {}), grid)
            _fill_constants(fit, source, start, encoding)
    return names


def _fit_encoding(
    fit: Fit,
    source: Source,
    start: str,
    module: Any,
    entries: dict[str, Entry],
    grid: Grid | None,
) -> None:
    for parameter, entry in entries.items():
        name = f"{start}{parameter}"
        like = fit.target.get(name)
        if like is None:
            fit.unknown.append(entry.key)
        else:
            fit.put(name, entry.key, *sized_table(source, entry, like, module, grid))


def _fill_constants(fit: Fit, source: Source, start: str, encoding: str) -> None:
    for (owner, parameter), value in source.constants.items():
        if owner == encoding:
            like = fit.target[f"{start}{parameter}"]
            fit.values[f"{start}{parameter}"] = torch.full_like(like, value, requires_grad=False)


def fit_others(
    fit: Fit, source: Source, reading: Reading, layout: TokenLayout | None, grid: Grid | None
) -> None:
    """Puts the layers of a plain vision transformer; `layout` is that of its absolute table."""
    for key, value in reading.others.items():
        name = _layer(source, key, fit.target) if source.layers else None
        if name is not None:
            fit.put(name, key, *_sized_layer(name, value, fit.target[name], layout, grid))
        elif any(re.fullmatch(pattern, key) for pattern in source.left_out):
            fit.left_out.append(key)
        else:
            fit.unknown.append(key)


def _layer(source: Source, key: str, target: dict[str, Tensor]) -> str | None:
    """What the model calls a layer of the checkpoint; None where it has none."""
    names = [key, *(re.sub(pattern, other, key) for pattern, other in source.renames)]
    return next((name for name in names if name in target), None)


def _sized_layer(
    name: str,
    value: Tensor,
    like: Tensor,
    layout: TokenLayout | None,
    grid: Grid | None,
) -> tuple[Tensor, str]:
    is_table = name == "pos_embed" and value.dim() == like.dim() == 3 and len(value) == 1
    if not is_table or layout is None or value.shape[2] != like.shape[2]:
        return value, ""
    return sized_absolute(value, like, layout, grid)


def check_fit(fit: Fit, source: Source, expected: set[str]) -> None:
    """Raises with everything that does not fit.

    Raises:
        ValueError: keys or names are in one of both only, or shapes or kinds of values differ.
    """
    missing = [name for name in fit.target if name in expected - fit.values.keys()]
    shapes = {
        name: f"{name} {list(value.shape)} instead of {list(fit.target[name].shape)}"
        for name, value in fit.values.items()
        if value.shape != fit.target[name].shape
    }
    kinds = [
        f"{name} {fault[0]}"
        for name, value in fit.values.items()
        if (fault := unfit(value, fit.target[name])) is not None
    ]
    problems = {
        "only in the checkpoint": fit.unknown,
        "only in the model": missing,
        "of another shape in the checkpoint": [*shapes.values()],
        "with values that no parameter has": kinds,
    }
    found = [f"{what}: {listed(names)}" for what, names in problems.items() if names]
    if found:
        advice = _advice([*fit.unknown, *missing], [*shapes], source)
        raise ValueError(
            f"the {source.name} checkpoint does not fit the model, nothing was loaded. "
            + _sentences(["; ".join(found), *advice])
        )


def _advice(names: list[str], shapes: list[str], source: Source) -> list[str]:
    found = _matching(_ADVICE_ON_NAMES, names) + _matching(_ADVICE, [*names, *shapes])
    return [*found, source.advice] if source.advice and any(map(is_of_encoding, shapes)) else found


def _matching(advice: dict[str, str], names: list[str]) -> list[str]:
    return [
        text for pattern, text in advice.items() if any(re.match(pattern, name) for name in names)
    ]


def _sentences(parts: list[str]) -> str:
    return ". ".join(f"{part[0].upper()}{part[1:]}" for part in parts)


def copy_values(fit: Fit) -> None:
    """Changes the model: its dtypes, devices and flags stay."""
    ready = {name: value.to(fit.target[name]) for name, value in fit.values.items()}
    with torch.no_grad():
        for name, value in ready.items():
            fit.target[name].copy_(value)


def tensors_of(backbone: nn.Module) -> dict[str, Tensor]:
    """Name -> parameter or buffer that a state dict of the model has."""
    return dict(backbone.state_dict(keep_vars=True))
