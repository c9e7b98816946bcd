"""What can be patched, and what was: reports that read well when printed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from posenc.encodings.learned import LearnedAbsolute
from posenc.layout import TokenLayout
from posenc.patching.checkpoint import patched_encodings
from posenc.patching.layouts import SeenLayout
from posenc.patching.models.examine import check_fused_flag, examine, module_refusal
from posenc.patching.models.kinds import UnsupportedModelError
from posenc.patching.models.others import OTHER
from posenc.patching.own_positions import ABSOLUTE, RELATIVE, doubled_rotary, own_positions
from posenc.patching.patch import PatchRecord, find_patched, patched_backbone, site_modules
from posenc.patching.sites.explained import explain_site
from posenc.patching.sites.site import Site


@dataclass(frozen=True)
class Support:
    """Whether a model can be patched.

    Args:
        supported: whether `patch_model` with an attention encoding would work on all blocks.
        reason: why not, or "".
        layout: of its tokens, if known; None where stages or windows have their own.
        sites: names of the attention modules that can be patched.
        layouts: name of each of them -> what it sees.
        refused: name of an attention module -> why it cannot be patched.
        left_alone: name of an attention module without a known grid -> why; `patch_model` passes
            over it.
        own_positions: position sources of the model itself.
    """

    supported: bool
    reason: str
    layout: TokenLayout | None = None
    sites: tuple[str, ...] = ()
    layouts: dict[str, TokenLayout] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    left_alone: dict[str, str] = field(default_factory=dict)
    own_positions: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.supported

    def __str__(self) -> str:
        if not self.supported and not self.sites and not self.refused:
            return f"not supported: {self.reason}"
        lines = [f"supported: {'yes' if self.supported else f'no, {self.reason}'}"]
        lines += [f"layout:    {self.layout or _count(self.layouts)}"]
        lines += [f"sites:     {_span(self.sites)}"]
        lines += [f"refused:   {name}: {reason}" for name, reason in self.refused.items()]
        alone: dict[str, list[str]] = {}
        for name, reason in self.left_alone.items():
            alone.setdefault(reason, []).append(name)
        lines += [f"left out:  {_span(tuple(names))}: {r}" for r, names in alone.items()]
        return "\n".join(lines)


def supports(model: nn.Module, *, layout: TokenLayout | None = None) -> Support:
    """Tells without patching what `patch_model` would find in the model, or why it refuses.

    Args:
        model: any module.
        layout: as for `patch_model`.
    """
    if (no_module := module_refusal(model)) is not None:
        return Support(False, no_module)
    if find_patched(model) is not None:
        return Support(False, "already patched; call posenc.unpatch_model(model)")
    try:
        backbone = examine(model, layout)
        backbone.check_one_place()
        if backbone.family is not OTHER:
            check_fused_flag()
    except UnsupportedModelError as error:
        return Support(False, str(error))
    reason = ""
    if backbone.refused:
        name, first = next(iter(backbone.refused.items()))
        reason = f"{len(backbone.refused)} attention modules are refused ({name}: {first})"
    elif not backbone.attention:
        reason = "no attention was found in its blocks"
        if backbone.left_alone:
            reason += f" that sees a known grid ({next(iter(backbone.left_alone.values()))})"
    return Support(
        supported=not reason,
        reason=reason,
        layout=None if backbone.layout is None else backbone.layout.default(),
        sites=tuple(site.name for site in backbone.attention),
        layouts={site.name: site.layout.default() for site in backbone.attention},
        refused=backbone.refused,
        left_alone=backbone.left_alone,
        own_positions=own_positions(backbone.module),
    )


_STARTS = {
    True: "changes the model at start",
    False: "no effect at start",
    None: "effect at start unknown",
}


@dataclass(frozen=True)
class Summary:
    """What a patched model has.

    Args:
        layout: of its tokens now; None where stages or windows have their own.
        follows_images: whether another image size gives another layout by itself.
        layouts: name of each attention site -> what it sees.
        sites: name of each site -> names of its encodings.
        own_positions: position sources of the model itself.
        encodings: name of an encoding -> its class and options.
        new_parameters: numbers that the encodings added.
        at_start: name of an encoding -> whether it has an effect from the start; None where its
            class does not say.
        backend: that computes the first attention site in inference and in training, for one
            image; `posenc.explain(model, images)` tells all sites.
        warnings: positions that are given twice, and the like.
    """

    layout: TokenLayout | None
    follows_images: bool
    layouts: dict[str, TokenLayout]
    sites: dict[str, tuple[str, ...]]
    own_positions: tuple[str, ...]
    encodings: dict[str, str]
    new_parameters: int
    at_start: dict[str, bool | None]
    backend: str
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        groups: dict[tuple[str, ...], list[str]] = {}
        for site, names in self.sites.items():
            groups.setdefault(names, []).append(site)
        lines = [f"layout:         {self._layout()}"]
        for names, sites in groups.items():
            lines.append(f"sites:          {_span(tuple(sites))} <- {' + '.join(names)}")
        for name, text in self.encodings.items():
            lines.append(f"encoding:       {name}: {text} [{_STARTS[self.at_start[name]]}]")
        lines.append(f"own positions:  {', '.join(self.own_positions) or 'none'}")
        lines.append(f"new parameters: {self.new_parameters:,}")
        lines.append(f"backend:        {self.backend}")
        lines += [f"warning:        {text}" for text in self.warnings]
        return "\n".join(lines)

    def _layout(self) -> str:
        if self.layout is None:
            return _count(self.layouts)
        own = {n: layout for n, layout in self.layouts.items() if layout != self.layout}
        windows = f", windows {_count(own)}" if own else ""
        follows = ", follows the image" if self.follows_images else ""
        return f"{self.layout} = {self.layout.num_tokens} tokens{windows}{follows}"


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
    own = own_positions(backbone, record.hidden)
    return Summary(
        layout=None if record.layout is None else record.layout.latest(),
        follows_images=isinstance(record.layout, SeenLayout),
        layouts={n: m._posenc.layout.latest() for n, m in sites.items() if m._posenc.attention},
        sites={
            name or module._posenc.name: names
            for name, module in sites.items()
            if (names := _names_at(module._posenc))
        },
        own_positions=own,
        encodings={name: _describe(encoding) for name, encoding in by_name.items()},
        new_parameters=sum(p.numel() for e in modules.values() for p in e.parameters()),
        at_start={name: encoding.changes_at_start() for name, encoding in by_name.items()},
        backend=_backend(sites, record),
        warnings=_doubled(by_name, own) + _hidden(by_name, record),
    )


def _names_at(site: Site) -> tuple[str, ...]:
    return (*site.attention, *site.positions, *site.inputs, *site.tokens)


def _describe(encoding: nn.Module) -> str:
    return f"{type(encoding).__name__}({encoding.extra_repr()})"


def _doubled(by_name: dict[str, nn.Module], own: tuple[str, ...]) -> tuple[str, ...]:
    """Absolute positions on top of absolute ones, relative on relative, rotary on rotary."""
    shown = [source for source in own if "hidden" not in source]
    absolute = [n for n, e in by_name.items() if getattr(e, "placement", None) == "position"]
    relative = [n for n, e in by_name.items() if getattr(e, "kind", None) == "relative"]
    texts = []
    if absolute and any(source.startswith(ABSOLUTE) for source in shown):
        texts.append(
            f"{' and '.join(absolute)} on top of the model's own absolute table; "
            'absolute="hide" hides that'
        )
    if relative and any(source.startswith(RELATIVE) for source in shown):
        texts.append(f"{' and '.join(relative)} on top of the model's own relative bias")
    return (*texts, *doubled_rotary(by_name, own))


def _hidden(by_name: dict[str, nn.Module], record: PatchRecord) -> tuple[str, ...]:
    if record.hidden is None or any(isinstance(e, LearnedAbsolute) for e in by_name.values()):
        return ()
    return ("the model's position table is hidden, so its outputs changed at start",)


def _backend(sites: dict[str, Any], record: PatchRecord) -> str:
    asked = str(record.config["backend"])
    site = next((module for module in sites.values() if module._posenc.attention), None)
    if site is None:
        return "not used (no encoding acts inside attention)"
    encodings = site._posenc.encodings(site, site._posenc.attention)
    inference, training = (
        explain_site(site, site._posenc, encodings, training).choice for training in (False, True)
    )
    if inference == training == asked:
        return asked
    chosen = f"inference {inference}, training {training}"
    return chosen if asked == "auto" else f"{asked} ({chosen})"


def _span(names: tuple[str, ...]) -> str:
    if len(names) <= 2:
        return ", ".join(names) or "none"
    return f"{names[0]} ... {names[-1]} ({len(names)})"


def _count(layouts: dict[str, TokenLayout]) -> str:
    counts = Counter(str(layout) for layout in layouts.values())
    return ", ".join(f"{layout} ({count})" for layout, count in counts.items()) or "none"
