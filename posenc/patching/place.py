"""Where encodings go, and building them there."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, NamedTuple

from torch import nn

from posenc.encodings.base import PLACEMENTS, AttentionEncoding, Encoding, TokenEncoding
from posenc.patching.layouts import LayoutSource
from posenc.patching.models.examine import AttentionSite, Backbone, check_fused_flag
from posenc.patching.models.kinds import UnsupportedModelError
from posenc.patching.models.others import OTHER
from posenc.patching.planned import Plan, at, own
from posenc.patching.select import Blocks, attention_names, choose, select
from posenc.patching.sites.roles import (
    EncodeInput,
    EncodeOutput,
    EncodePositions,
    ReplaceAttention,
    SeeMap,
)
from posenc.patching.sites.site import Site, acts_on
from posenc.patching.spec import Spec
from posenc.patching.spots import FINDERS, Spot, input_refusal, spots_of
from posenc.registry import required_sizes

# Kinds that act at the attention modules that `blocks=` selects.
SELECTED = ("attention", "attention_input")


def place(plan: Plan, spec: Spec, blocks: Blocks) -> None:
    """Builds one encoding for each of its sites, or one for all (`share`)."""
    if plan.share:
        _check_shareable(spec)
    if (kind := _kind_of_class(spec)) in SELECTED:
        _place_at_attention(plan, spec, blocks, kind, {})
        return
    # What a callable builds shows only when it was called: the result is kept for its site.
    is_class = isinstance(spec.build, type)
    site = _first_site(plan.backbone, None if is_class else blocks)
    if is_class:
        site = _seeing_all(plan, spec, site)
    where = _first_place(plan, spec)
    first = _build(plan, spec, site.module if site else plan.backbone.module, site, where)
    if (kind := acts_on(first)) in SELECTED:
        _place_at_attention(plan, spec, blocks, kind, {site.name: first} if site else {})
        return
    if site is not None and site.layout.default() != _one_grid(plan, spec).default():
        first = _build(plan, spec, site.module, _seeing_all(plan, spec, site), where)
    _place_on_tokens(plan, spec, first)


def _place_on_tokens(plan: Plan, spec: Spec, first: Encoding) -> None:
    kind = acts_on(first)
    if kind == "position":
        _place_at_step(plan, spec, first)
    elif kind in FINDERS:
        _place_in_blocks(plan, spec, first)
    else:
        known = ", ".join(map(repr, PLACEMENTS))
        raise ValueError(f"{spec.name}: placement must be one of {known}, got {kind!r}")


def _kind_of_class(spec: Spec) -> str | None:
    """As `acts_on` of what it builds; None for a callable, which does not say."""
    if not isinstance(spec.build, type):
        return None
    inside = issubclass(spec.build, AttentionEncoding)
    return "attention" if inside else getattr(spec.build, "placement", None)


def _first_site(backbone: Backbone, blocks: Blocks) -> AttentionSite | None:
    """A selected attention site, if possible one that sees all tokens rather than a window."""
    chosen = choose(attention_names(backbone), blocks)
    sites = [site for site in backbone.attention if site.name in chosen]
    whole = backbone.layout and backbone.layout.default()
    return next((s for s in sites if s.layout.default() == whole), sites[0] if sites else None)


def _seeing_all(plan: Plan, spec: Spec, site: AttentionSite | None) -> AttentionSite | None:
    """The site as what acts on tokens needs it: all of them, not a window."""
    layout = _one_grid(plan, spec)
    return None if site is None else dataclasses.replace(site, layout=layout)


def _place_at_attention(
    plan: Plan, spec: Spec, blocks: Blocks, kind: str, built: dict[str, Any]
) -> None:
    """`built` has the encodings that there are already, by site."""
    selected = _selected(plan, spec, blocks, kind)
    if plan.share:
        _check_equal(selected)
        where, one = _first_place(plan, spec), selected[0]
        shared = [*built.values()] or [_build(plan, spec, one.module, one, where)]
        built = {site.name: shared[0] for site in selected}
    names = attention_names(plan.backbone)
    for site in selected:
        where = Where(names.index(site.name), len(names))
        there = site.name in built
        encoding: Any = built[site.name] if there else _build(plan, spec, site.module, site, where)
        if acts_on(encoding) != kind:
            place = "inside attention" if kind == "attention" else "before attention"
            raise ValueError(
                f"{spec.name}: the callable returned encodings of different kinds, for {site.name} "
                f"a {type(encoding).__name__}, which does not act {place}"
            )
        planned = at(plan, site.name, _role_at_attention(kind, site))
        _see_map(plan, site)
        _describe_attention(planned.site, site)
        if kind == "attention":
            planned.site.attention.append(spec.name)
        else:
            _check_width(spec, encoding, site.name, site.width)
            planned.site.inputs.append(spec.name)
        own(plan, planned, spec.name, encoding)


def _selected(plan: Plan, spec: Spec, blocks: Blocks, kind: str) -> list[AttentionSite]:
    """The attention modules that `blocks=` selects, where this kind can act at all of them."""
    if kind == "attention_input":
        _one_layout(plan, spec)
    elif plan.backbone.family is not OTHER:
        check_fused_flag()
    selected = select(plan.backbone, blocks)
    for site in selected if kind == "attention_input" else []:
        if reason := input_refusal(plan.backbone, site):
            raise UnsupportedModelError(
                f"{spec.name} cannot act at {site.name}: {reason}. Leave it out with blocks="
            )
    return selected


def _role_at_attention(kind: str, site: AttentionSite) -> EncodeInput | ReplaceAttention:
    # That of torch compares its three arguments, and takes the batch second too.
    if kind == "attention_input" and site.kind.adapter != "multihead":
        return EncodeInput()
    return ReplaceAttention(site.kind.adapter)


def _see_map(plan: Plan, site: AttentionSite) -> None:
    """Its layout is that of the map that it receives, if it receives one."""
    if site.kind.map is not None:
        receiver = ".".join(filter(None, [site.name, site.kind.map_of]))
        at(plan, receiver, SeeMap(site.kind.map)).site.layout = site.layout


def _check_equal(sites: list[AttentionSite]) -> None:
    sizes = {(s.num_heads, s.head_dim, str(s.layout.default())) for s in sites}
    if len(sizes) > 1:
        raise ValueError(
            "share=True needs attention modules of equal (num_heads, head_dim, layout), got "
            f"{sorted(sizes)}"
        )


def _describe_attention(site: Site, found: AttentionSite) -> None:
    site.layout = found.layout
    site.shape = found.kind.shape
    site.num_heads = found.num_heads
    site.head_dim = found.head_dim
    site.value_dim = found.value_dim


def _place_at_step(plan: Plan, spec: Spec, encoding: Encoding) -> None:
    """Where the model adds its own positions, or would."""
    _one_grid(plan, spec)
    step = plan.backbone.family.step
    if step is None:
        planned = at(plan, plan.backbone.blocks[0], EncodeInput())
    elif step.before:
        planned = at(plan, step.module, EncodeInput())
    else:
        planned = at(plan, step.module, EncodePositions(step.method))
    planned.site.positions.append(spec.name)
    planned.own[spec.name] = _moved(plan, encoding, plan.backbone.module)


def _one_layout(plan: Plan, spec: Spec) -> LayoutSource:
    """The layout of all tokens; raises where there is none."""
    if plan.backbone.layout is None:
        raise UnsupportedModelError(
            f"{spec.name} acts on the tokens of one grid, and "
            f"{type(plan.backbone.module).__name__} has windows or stages: encodings that act "
            "inside attention work there"
        )
    return plan.backbone.layout


def _one_grid(plan: Plan, spec: Spec) -> LayoutSource:
    """As `_one_layout`; raises too where the tokens outside attention are not known."""
    layout = _one_layout(plan, spec)
    if plan.backbone.family is OTHER:
        raise UnsupportedModelError(
            f"{spec.name} acts on tokens, and where {type(plan.backbone.module).__name__} has "
            "them is not known: posenc knows its attention modules only. Encodings that act "
            "inside attention work there"
        )
    return layout


def _place_in_blocks(plan: Plan, spec: Spec, first: Any) -> None:
    _one_grid(plan, spec)
    spots = spots_of(plan.backbone, first, spec.name)
    if plan.share:
        _check_equal_widths(spots)
    # The first was built before it could tell which block it acts in, and how wide its tokens are.
    asks = isinstance(spec.build, type) and "block" in inspect.signature(spec.build).parameters
    fits = first.embed_dim == spots[0].width and (plan.share or not asks)
    first = first if fits else _build_at(plan, spec, spots[0])
    for place, spot in enumerate(spots):
        encoding = first if plan.share or place == 0 else _build_at(plan, spec, spot)
        _check_width(spec, encoding, spot.name, spot.width)
        planned = at(plan, spot.name, spot.role)
        names = planned.site.tokens if spot.role == EncodeOutput() else planned.site.inputs
        names.append(spec.name)
        own(plan, planned, spec.name, _moved(plan, encoding, spot.near))


def _build_at(plan: Plan, spec: Spec, spot: Spot) -> Any:
    block = None if plan.share else spot.block
    where = Where(block, len(plan.backbone.blocks))
    return _build(plan, spec, spot.near, None, where, width=spot.width)


def _check_equal_widths(spots: list[Spot]) -> None:
    widths = sorted({spot.width for spot in spots})
    if len(widths) > 1:
        raise ValueError(f"share=True needs tokens of equal width, got {widths}")


def _check_width(spec: Spec, encoding: TokenEncoding, name: str, width: int | None) -> None:
    if encoding.embed_dim != width:
        raise ValueError(
            f"{spec.name} was built for tokens of width {encoding.embed_dim}, and those at {name} "
            f"have {width}: build it with the embed_dim that it is given"
        )


class Where(NamedTuple):
    """Where an encoding stands, for those that differ by depth.

    Args:
        block: of an encoding inside or before attention, the index of its attention module among
            all that `blocks=` counts (those of all stages, in the order of the model); of another
            one in blocks, the index of its block. None at the position step, and with `share`.
        num_blocks: how many there are, patched or not.
    """

    block: int | None
    num_blocks: int


def _first_place(plan: Plan, spec: Spec) -> Where:
    """Of the encoding that is built first, and kept if it is the only one."""
    kind = _kind_of_class(spec)
    at_attention = kind is None or kind in SELECTED
    count = len(attention_names(plan.backbone) if at_attention else plan.backbone.blocks)
    return Where(None if plan.share or kind == "position" else 0, count)


def _check_shareable(spec: Spec) -> None:
    if isinstance(spec.build, type) and "block" in required_sizes(spec.build):
        raise ValueError(
            f"share=True builds one {spec.name} for all blocks, but {spec.name} needs the index "
            "of its block; use share=False"
        )


def _build(
    plan: Plan,
    spec: Spec,
    near: nn.Module,
    site: AttentionSite | None,
    where: Where,
    width: int | None = None,
) -> Encoding:
    """On the device and in the dtype of the module that it goes to; `width` is that of tokens."""
    parameter = floating_parameter(near)
    source = _one_grid(plan, spec) if site is None else site.layout
    return spec.create(
        source.default(),
        {
            "num_heads": site.num_heads if site else None,
            "head_dim": site.head_dim if site else None,
            "embed_dim": width or (site.width if site else plan.backbone.embed_dim),
            **where._asdict(),
        },
        plan.device_of(parameter),
        parameter.dtype,
    )


def _moved(plan: Plan, encoding: Encoding, near: nn.Module) -> Encoding:
    """The encoding, on the device and in the dtype of this module."""
    parameter = floating_parameter(near)
    return encoding.to(device=plan.device_of(parameter), dtype=parameter.dtype)


def floating_parameter(module: nn.Module) -> nn.Parameter:
    """A parameter of the module, for device and dtype; raises where it is no real number."""
    parameter = next(module.parameters())
    if not parameter.is_floating_point():
        raise UnsupportedModelError(
            f"{type(module).__name__} has {parameter.dtype} parameters: patch the floating point "
            "model, then quantize it"
        )
    return parameter
