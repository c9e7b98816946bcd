"""The encodings of the model that a checkpoint goes to: whether they are there, and where."""

from __future__ import annotations

from typing import Any

from torch import nn

from posenc.encodings.base import Encoding
from posenc.patching.checkpoint import patched_encodings
from posenc.patching.fold import FoldedBias
from posenc.patching.reference.reading import Entry, Reading, depth_of
from posenc.patching.reference.source import Need, Source, State
from posenc.patching.reference.state import listed

Places = dict[str, dict[str, Encoding]]


def patch_call(needs: tuple[Need, ...]) -> str:
    """What the user should have called, in words of Python."""
    names = "+".join(need.encoding for need in needs)
    options: dict[str, Any] = {}
    for need in needs:
        options |= {name: values[0] for name, values in need.options.items()} | dict(need.shown)
    given = "".join(f", {name}={value!r}" for name, value in options.items())
    return f'posenc.patch_model(model, "{names}"{given})'


def check_patched(backbone: Any, source: Source, needs: tuple[Need, ...]) -> None:
    """Raises unless the model is patched with the encodings that are needed, and their options.

    Beside whole models there may be no other encoding, which would change what they compute.
    """
    there = {s["name"]: s["options"] for s in backbone._posenc_record.config["encodings"]}
    wanted = [need.encoding for need in needs]
    again = f"call posenc.unpatch_model(model), then {patch_call(needs)}"
    more, fewer = there.keys() - wanted, set(wanted) - there.keys()
    if fewer or (source.layers and more):
        raise ValueError(
            f"the model is patched with {' and '.join(there)}, the {source.name} checkpoint needs "
            f"{' and '.join(wanted)}: {again}"
        )
    for need in needs:
        for option, values in need.options.items():
            found = there[need.encoding].get(option)
            if found not in values:
                raise ValueError(
                    f"the model is patched with {need.encoding} of {option}={found!r}, the "
                    f"{source.name} checkpoint needs {' or '.join(map(repr, values))}: {again}"
                )


def places_of(backbone: nn.Module, needs: tuple[Need, ...]) -> Places:
    """Encoding -> name of its module -> itself, in the order of the model; "" is the root.

    Raises:
        ValueError: they are folded.
    """
    places: Places = {need.encoding: {} for need in needs}
    for key, encoding in patched_encodings(backbone).items():
        site, _, name = key.rpartition(".")
        if isinstance(encoding, FoldedBias):
            raise ValueError(
                "the biases of the model are folded, its tables are gone: load the checkpoint "
                "before posenc.fold_biases"
            )
        if name in places and isinstance(encoding, Encoding):
            places[name][site] = encoding
    return places


def check_sizes(backbone: nn.Module, reading: Reading) -> None:
    """Raises where a plain vision transformer has another depth or width."""
    mine = depth_of(name for name, _ in backbone.named_modules())
    if not mine:
        own = getattr(type(backbone), "posenc_original_class", type(backbone))
        raise ValueError(
            f"{own.__name__} has no modules blocks.<i>: the layers of the checkpoint go "
            "to a plain vision transformer of timm (VisionTransformer), patched"
        )
    if reading.depth != mine:
        raise ValueError(
            f"the checkpoint has {reading.depth} blocks, the model has {mine}: create the model "
            f"with depth={reading.depth}"
        )
    theirs, ours = _width(reading.others), _width(backbone.state_dict())
    if theirs and ours and theirs != ours:
        raise ValueError(
            f"the checkpoint has tokens of width {theirs}, the model of width {ours}: create the "
            f"model with embed_dim={theirs} and the heads of the checkpoint's model"
        )


def _width(state: State) -> int | None:
    weight = state.get("patch_embed.proj.weight")
    return None if weight is None or weight.dim() == 0 else len(weight)


def matched(
    source: Source, name: str, reading: Reading, mine: dict[str, Encoding]
) -> dict[str, dict[str, Entry]]:
    """Name of a module of the model -> parameter -> value, for one encoding.

    Places have the same names in whole models; elsewhere they follow each other in the same order.

    Raises:
        ValueError: there are other places, or another number of them.
    """
    theirs = reading.tables.get(name, {})
    if not theirs and source.example is None:  # it has no parameters
        _check_everywhere(name, mine, reading.depth)
        return {}
    if "" in theirs:
        _check_everywhere(name, mine, reading.depth)
        return dict.fromkeys(mine, _for_all(theirs))
    if source.layers and "" not in mine:
        _check_names(name, list(theirs), list(mine))
        return {place: theirs[place] for place in mine}
    _check_number(source, name, list(theirs), list(mine))
    return dict(zip(mine, theirs.values(), strict=True))


def _for_all(theirs: dict[str, dict[str, Entry]]) -> dict[str, Entry]:
    if len(theirs) > 1:
        raise ValueError(
            f"the checkpoint has one table for all blocks ({_first_key(theirs[''])}) and tables of "
            "its blocks: add it to these, and leave it out"
        )
    return theirs[""]


def _first_key(entries: dict[str, Entry]) -> str:
    return next(iter(entries.values())).key


def _check_names(name: str, theirs: list[str], mine: list[str]) -> None:
    for where, some, others in (("checkpoint", theirs, mine), ("model", mine, theirs)):
        if only := [place for place in some if place not in others]:
            raise ValueError(
                f"only the {where} has {name} in {listed(only)}: patch the modules that the "
                f"checkpoint has tables for ({listed(theirs)}), with blocks="
            )


def _check_number(source: Source, name: str, theirs: list[str], mine: list[str]) -> None:
    if len(theirs) == len(mine):
        return
    if mine == [""]:
        raise ValueError(
            f"the model has one {name} for all blocks (share=True), the checkpoint has "
            f"{len(theirs)}: patch without share=True"
        )
    raise ValueError(
        f"the checkpoint has {len(theirs)} places for {name} ({listed(theirs, 4)}), the model has "
        f"{len(mine)} ({listed(mine, 4)}), and they are paired in order: patch as many, with "
        f"blocks= (peg: after=), or pass a part of the state. {source.advice}".rstrip()
    )


def _check_everywhere(name: str, mine: dict[str, Encoding], depth: int) -> None:
    if "" not in mine and len(mine) != depth:
        raise ValueError(
            f"the model has {name} in {listed(list(mine))}, the checkpoint's model in all "
            f"{depth} blocks: patch without blocks="
        )
