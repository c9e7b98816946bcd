"""What can be patched, and what was: reports that read well when printed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from posenc.encodings.learned import LearnedAbsolute
from posenc.layout import TokenLayout
from posenc.patching.anatomy import check_fused_flag, examine
from posenc.patching.checkpoint import patched_encodings
from posenc.patching.families import UnsupportedModelError
from posenc.patching.patch import PatchRecord, find_patched, patched_backbone, site_modules
from posenc.patching.plan import explain_site
from posenc.patching.sites import Site


@dataclass(frozen=True)
class Support:
    """Whether a model can be patched.

    Args:
        supported: whether `patch_model` with an attention encoding would work on all blocks.
        reason: why not, or "".
        layout: of its tokens, if known.
        sites: names of the attention modules that can be patched.
        refused: name of an attention module -> why it cannot.
    """

    supported: bool
    reason: str
    layout: TokenLayout | None
    sites: tuple[str, ...]
    refused: dict[str, str]

    def __bool__(self) -> bool:
        return self.supported

    def __str__(self) -> str:
        if not self.supported and not self.sites:
            return f"not supported: {self.reason}"
        lines = [f"supported: {'yes' if self.supported else f'no, {self.reason}'}"]
        lines += [f"layout:    {self.layout}", f"sites:     {_span(self.sites)}"]
        lines += [f"refused:   {name}: {reason}" for name, reason in self.refused.items()]
        return "\n".join(lines)


def supports(model: nn.Module) -> Support:
    """Tells without patching what `patch_model` would find in the model, or why it refuses."""
    if isinstance(model, nn.Module) and find_patched(model) is not None:
        return Support(False, "already patched; call posenc.unpatch_model(model)", None, (), {})
    try:
        anatomy = examine(model)
        check_fused_flag()
    except UnsupportedModelError as error:
        return Support(False, str(error), None, (), {})
    sites = tuple(site.name for site in anatomy.attention)
    reason = ""
    if anatomy.refused:
        reason = f"{len(anatomy.refused)} attention modules are refused"
    elif not sites:
        reason = "no attention was found in its blocks"
    return Support(not reason, reason, anatomy.layout.at_rest(), sites, anatomy.refused)


@dataclass(frozen=True)
class Summary:
    """What a patched model has.

    Args:
        layout: of its tokens now.
        sites: name of each site -> names of its encodings.
        own_positions: position sources of the model itself.
        encodings: name of an encoding -> its class and options.
        new_parameters: numbers that the encodings added.
        changing: encodings with an effect from the start.
        backend: that was asked for, and what "auto" chooses now (in eval).
        warnings: positions that are given twice, and the like.
    """

    layout: TokenLayout
    sites: dict[str, tuple[str, ...]]
    own_positions: tuple[str, ...]
    encodings: dict[str, str]
    new_parameters: int
    changing: tuple[str, ...]
    backend: str
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        groups: dict[tuple[str, ...], list[str]] = {}
        for site, names in self.sites.items():
            groups.setdefault(names, []).append(site)
        lines = [f"layout:         {self.layout} = {self.layout.num_tokens} tokens"]
        for names, sites in groups.items():
            lines.append(f"sites:          {_span(tuple(sites))} <- {' + '.join(names)}")
        for name, text in self.encodings.items():
            start = "changes the model at start" if name in self.changing else "no effect at start"
            lines.append(f"encoding:       {name}: {text} [{start}]")
        lines.append(f"own positions:  {', '.join(self.own_positions) or 'none'}")
        lines.append(f"new parameters: {self.new_parameters:,}")
        lines.append(f"backend:        {self.backend}")
        lines += [f"warning:        {text}" for text in self.warnings]
        return "\n".join(lines)


def summary(model: nn.Module) -> Summary:
    """Sites, layout, the model's own positions, encodings, new parameters and backend.

    Raises:
        ValueError: the model is not patched.
    """
    backbone = patched_backbone(model)
    record: PatchRecord = backbone._posenc_record
    sites = site_modules(backbone)
    modules = patched_encodings(model)
    by_name: dict[str, Any] = {
        key.rpartition(".")[2]: encoding for key, encoding in modules.items()
    }
    own = _own_positions(backbone, record)
    return Summary(
        layout=record.layout.at_rest(),
        sites={
            name or type(backbone).posenc_original_class.__name__: names
            for name, module in sites.items()
            if (names := _names_at(module._posenc))
        },
        own_positions=own,
        encodings={name: _describe(encoding) for name, encoding in by_name.items()},
        new_parameters=sum(p.numel() for e in modules.values() for p in e.parameters()),
        changing=tuple(n for n, e in by_name.items() if e.changes_at_start()),
        backend=_backend(sites, record),
        warnings=_doubled(by_name, own) + _hidden(by_name, record),
    )


def _names_at(site: Site) -> tuple[str, ...]:
    return (*site.attention, *site.positions, *site.tokens)


def _describe(encoding: nn.Module) -> str:
    return f"{type(encoding).__name__}({encoding.extra_repr()})"


def _own_positions(backbone: Any, record: PatchRecord) -> tuple[str, ...]:
    if backbone.pos_embed is None:
        return ()
    rows = backbone.pos_embed.shape[1]
    return (f"absolute table pos_embed, {rows} rows{', hidden' if record.hidden else ''}",)


def _doubled(by_name: dict[str, nn.Module], own: tuple[str, ...]) -> tuple[str, ...]:
    """Absolute positions on top of absolute positions."""
    absolute = [n for n, e in by_name.items() if getattr(e, "placement", None) == "position"]
    if absolute and own and "hidden" not in own[0]:
        return (
            f"{' and '.join(absolute)} on top of the model's own absolute table; "
            'absolute="remove" hides that',
        )
    return ()


def _hidden(by_name: dict[str, nn.Module], record: PatchRecord) -> tuple[str, ...]:
    if not record.hidden or any(isinstance(e, LearnedAbsolute) for e in by_name.values()):
        return ()
    return ("the model's position table is hidden, so its outputs changed at start",)


def _backend(sites: dict[str, Any], record: PatchRecord) -> str:
    asked = str(record.config["backend"])
    site = next((module for module in sites.values() if module._posenc.attention), None)
    if site is None:
        return "not used (no encoding acts inside attention)"
    encodings = list(site._posenc.encodings(site, site._posenc.attention))
    choice = explain_site(site, site._posenc, encodings).choice
    return choice if asked == choice else f"{asked} ({choice})"


def _span(names: tuple[str, ...]) -> str:
    if len(names) <= 2:
        return ", ".join(names) or "none"
    return f"{names[0]} ... {names[-1]} ({len(names)})"
