"""What a patch would do: everything is checked and built here, nothing is changed."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn

from posenc.attention.api import check_backend
from posenc.encodings.base import AttentionEncoding, Encoding, check_layout
from posenc.encodings.learned import LearnedAbsolute
from posenc.encodings.peg import check_after
from posenc.intercept import CannotRewrite
from posenc.layout import TokenLayout
from posenc.patching.layouts import LayoutSource, SeenLayout
from posenc.patching.models.examine import (
    AttentionSite,
    Backbone,
    check_fused_flag,
    examine,
    warn_if_pointless,
)
from posenc.patching.models.kinds import UnsupportedModelError
from posenc.patching.models.others import OTHER
from posenc.patching.sites.classes import site_class
from posenc.patching.sites.explained import explain_site
from posenc.patching.sites.roles import (
    BindLayout,
    EncodeInput,
    EncodeOutput,
    EncodePositions,
    HideTable,
    ReplaceAttention,
    Role,
    Root,
    SeeImage,
    SeeMap,
    in_order,
)
from posenc.patching.sites.site import Site, acts_on
from posenc.patching.spec import Spec, parse_specs
from posenc.registry import required_sizes

Blocks = Sequence[int] | slice | int | Callable[[str], bool] | None


@dataclass
class PlannedSite:
    """A module, the class it will get and the encodings that it will own."""

    module: nn.Module
    site: Site
    roles: list[Role] = field(default_factory=list)
    own: dict[str, Encoding] = field(default_factory=dict)

    @property
    def is_attention(self) -> bool:
        """Whether calls in its forward are replaced."""
        return any(isinstance(role, ReplaceAttention) for role in self.roles)

    def new_class(self) -> type[nn.Module]:
        """The generated class; without any role the module's own.

        Raises:
            UnsupportedModelError: its code cannot be rewritten.
        """
        original: Any = type(self.module)
        if not self.roles:
            return original
        try:
            return site_class(original, in_order(self.roles))
        except CannotRewrite as reason:
            raise UnsupportedModelError(
                f"{self.site.name} ({original.__name__}): {reason}"
            ) from None


@dataclass
class Plan:
    """All sites of a patch; the one named "" is the backbone."""

    backbone: Backbone
    specs: list[Spec]
    sites: dict[str, PlannedSite]
    share: bool
    absolute: str
    backend: str
    meta: bool = False  # encodings without memory, to see their shapes

    def device_of(self, parameter: nn.Parameter) -> torch.device:
        """Where an encoding beside this parameter is built."""
        return torch.device("meta") if self.meta else parameter.device

    @property
    def encodings(self) -> list[Encoding]:
        """Every encoding that will be registered."""
        return [e for planned in self.sites.values() for e in planned.own.values()]


def make_plan(
    model: nn.Module,
    encoding: Any,
    layout: TokenLayout | None,
    blocks: Blocks,
    share: bool,
    absolute: str,
    backend: str,
    options: dict[str, Any],
    meta: bool = False,
) -> Plan:
    """Checks everything and builds the encodings; the model is only read.

    With `meta` encodings take no memory, and what would need it is not checked.
    """
    specs = parse_specs(encoding, options)
    check_backend(backend)
    if layout is not None:
        check_layout(layout, "patch_model")
    if absolute not in ("keep", "hide"):
        raise ValueError(f'absolute must be "keep" or "hide", got {absolute!r}')
    if not isinstance(share, bool):  # "no" would be true
        raise TypeError(f"share must be True or False, got {share!r}")
    backbone = examine(model, layout)
    _check_attributes(backbone)
    _floating_parameter(backbone.module)
    plan = Plan(backbone, specs, {}, share, absolute, backend, meta)
    # Parameters made inside inference_mode could never be trained.
    with _untouched_rng(backbone.module), torch.inference_mode(False):
        for spec in specs:
            _place(plan, spec, blocks)
    if blocks is not None and not any(p.is_attention for p in plan.sites.values()):
        names = " and ".join(spec.name for spec in specs)
        raise ValueError(
            f"blocks={blocks!r} selects attention modules, but {names} acts on tokens"
            + (" (peg has after=)" if "peg" in names else "")
        )
    if absolute == "hide":
        _hide_table(plan)
    _follow_images(plan)
    _at_root(plan)
    if meta:
        return plan
    for planned in plan.sites.values():
        planned.new_class()
        if planned.is_attention:
            _check_computable(plan, planned)
    warn_if_pointless(backbone.layouts())
    return plan


def _place(plan: Plan, spec: Spec, blocks: Blocks) -> None:
    """Builds one encoding for each of its sites, or one for all (`share`)."""
    if plan.share:
        _check_shareable(spec)
    if _acts_in_attention(spec):
        _place_in_attention(plan, spec, blocks, {})
        return
    # What a callable builds shows only when it was called: the result is kept for its site.
    is_class = isinstance(spec.build, type)
    site = _first_site(plan.backbone, None if is_class else blocks)
    if is_class:
        site = _seeing_all(plan, spec, site)
    where = _first_place(plan, spec)
    first = _build(plan, spec, site.module if site else plan.backbone.module, site, where)
    if acts_on(first) == "attention":
        _place_in_attention(plan, spec, blocks, {site.name: first} if site else {})
        return
    if site is not None and site.layout.default() != _one_grid(plan, spec).default():
        first = _build(plan, spec, site.module, _seeing_all(plan, spec, site), where)
    _place_on_tokens(plan, spec, first)


def _place_on_tokens(plan: Plan, spec: Spec, first: Encoding) -> None:
    kind = acts_on(first)
    if kind == "block":
        _place_after_blocks(plan, spec, first)
    elif kind == "position":
        _place_at_step(plan, spec, first)
    else:
        raise ValueError(f'{spec.name}: placement must be "position" or "block", got {kind!r}')


def _acts_in_attention(spec: Spec) -> bool:
    return isinstance(spec.build, type) and issubclass(spec.build, AttentionEncoding)


def _first_site(backbone: Backbone, blocks: Blocks) -> AttentionSite | None:
    """A selected attention site, if possible one that sees all tokens rather than a window."""
    chosen = _choose(_attention_names(backbone), blocks)
    sites = [site for site in backbone.attention if site.name in chosen]
    whole = backbone.layout and backbone.layout.default()
    return next((s for s in sites if s.layout.default() == whole), sites[0] if sites else None)


def _seeing_all(plan: Plan, spec: Spec, site: AttentionSite | None) -> AttentionSite | None:
    """The site as what acts on tokens needs it: all of them, not a window."""
    layout = _one_grid(plan, spec)
    return None if site is None else dataclasses.replace(site, layout=layout)


def _place_in_attention(plan: Plan, spec: Spec, blocks: Blocks, built: dict[str, Encoding]) -> None:
    """`built` has the encodings that there are already, by site."""
    if plan.backbone.family is not OTHER:
        check_fused_flag()
    selected = _select(plan.backbone, blocks)
    if plan.share:
        _check_equal(selected)
        where, one = _first_place(plan, spec), selected[0]
        shared = [*built.values()] or [_build(plan, spec, one.module, one, where)]
        built = {site.name: shared[0] for site in selected}
    names = _attention_names(plan.backbone)
    for site in selected:
        where = Where(names.index(site.name), len(names))
        there = site.name in built
        encoding = built[site.name] if there else _build(plan, spec, site.module, site, where)
        if acts_on(encoding) != "attention":
            raise ValueError(
                f"{spec.name}: the callable returned encodings of different kinds, for {site.name} "
                f"a {type(encoding).__name__}, which does not act inside attention"
            )
        planned = _at(plan, site.name, ReplaceAttention(site.kind.adapter))
        if site.kind.map is not None:
            receiver = ".".join(filter(None, [site.name, site.kind.map_of]))
            _at(plan, receiver, SeeMap(site.kind.map)).site.layout = site.layout
        _describe_attention(planned.site, site)
        planned.site.attention.append(spec.name)
        _own(plan, planned, spec.name, encoding)


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
        planned = _at(plan, plan.backbone.blocks[0], EncodeInput())
    elif step.before:
        planned = _at(plan, step.module, EncodeInput())
    else:
        planned = _at(plan, step.module, EncodePositions(step.method))
    planned.site.positions.append(spec.name)
    planned.own[spec.name] = _moved(plan, encoding, plan.backbone.module)


def _one_grid(plan: Plan, spec: Spec) -> LayoutSource:
    """The layout of all tokens; raises where there is none, or where they are not known."""
    if plan.backbone.layout is None:
        raise UnsupportedModelError(
            f"{spec.name} acts on the tokens of one grid, and "
            f"{type(plan.backbone.module).__name__} has windows or stages: encodings that act "
            "inside attention work there"
        )
    if plan.backbone.family is OTHER:
        raise UnsupportedModelError(
            f"{spec.name} acts on tokens, and where {type(plan.backbone.module).__name__} has "
            "them is not known: posenc knows its attention modules only. Encodings that act "
            "inside attention work there"
        )
    return plan.backbone.layout


def _follow_images(plan: Plan) -> None:
    """Who sees the images; and who remembers their layout, where it changes."""
    seen = plan.backbone.sees_images
    if seen is None:
        return
    embedding, seen_grid = seen
    _at(plan, embedding, SeeImage()).site.seen_grid = seen_grid
    if isinstance(plan.backbone.layout, SeenLayout):
        for name in plan.backbone.blocks:
            _at(plan, name, BindLayout())


def _place_after_blocks(plan: Plan, spec: Spec, first: Encoding) -> None:
    _one_grid(plan, spec)
    names = plan.backbone.blocks
    for place, index in enumerate(check_after(first.after)):  # type: ignore[arg-type]
        if not -len(names) <= index < len(names):
            raise ValueError(
                f"{spec.name}: after={first.after} names block {index}, but the model has "
                f"{len(names)} blocks (0 to {len(names) - 1})"
            )
        planned = _at(plan, names[index], EncodeOutput())
        if spec.name in planned.site.tokens:
            raise ValueError(f"{spec.name}: after={first.after} names block {index} twice")
        planned.site.tokens.append(spec.name)
        where = Where(index % len(names), len(names))
        # The first was built before it could tell which block it acts after.
        asks = isinstance(spec.build, type) and "block" in inspect.signature(spec.build).parameters
        kept = plan.share or (place == 0 and not asks)
        encoding = first if kept else _build(plan, spec, planned.module, None, where)
        _own(plan, planned, spec.name, _moved(plan, encoding, planned.module))


def _own(plan: Plan, planned: PlannedSite, name: str, encoding: Encoding) -> None:
    if not plan.share and any(encoding is other for other in plan.encodings):
        raise ValueError(
            f"{name}: the callable returned the same module for two sites; return a new one each "
            "time, or pass share=True"
        )
    if plan.share:
        # Registered once, on the root: EMA and safetensors then see it once.
        _at_root(plan).own[name] = encoding
        planned.site.shared[name] = encoding
    else:
        planned.own[name] = encoding


def _at_root(plan: Plan) -> PlannedSite:
    """The backbone, whose class changes only where optimizers will ask it about parameters.

    Other libraries write down the names of their classes.
    """
    module = plan.backbone.module
    asked = plan.backbone.family is not OTHER or hasattr(module, "no_weight_decay")
    return _at(plan, "", Root() if asked else None)


def _at(plan: Plan, name: str, role: Role | None) -> PlannedSite:
    if name not in plan.sites:
        module = plan.backbone.module.get_submodule(name)
        for other, planned in plan.sites.items():
            if planned.module is module:
                raise UnsupportedModelError(f"{name} is the same module as {other} (tied blocks)")
        # A staged model has no layout of its own; its attention modules get theirs.
        layout: Any = plan.backbone.layout
        site = Site(name or type(module).__name__, layout, plan.backend)
        plan.sites[name] = PlannedSite(module, site)
    planned = plan.sites[name]
    if role is None:
        return planned
    for method in role.replaced():
        if method in vars(planned.module):
            raise UnsupportedModelError(
                f"{planned.site.name}: its {method} was replaced on the instance (a hook of "
                "another library), which would bypass the encoding; patch first"
            )
    if role not in planned.roles:
        planned.roles.append(role)
    return planned


class Where(NamedTuple):
    """Where an encoding stands, for those that differ by depth.

    Args:
        block: of an encoding inside attention, the index of its attention module among all that
            `blocks=` counts (those of all stages, in the order of the model); of one that acts
            after blocks, the index of its block. None at the position step, and with `share`.
        num_blocks: how many there are, patched or not.
    """

    block: int | None
    num_blocks: int


def _first_place(plan: Plan, spec: Spec) -> Where:
    """Of the encoding that is built first, and kept if it is the only one."""
    placement = getattr(spec.build, "placement", None)  # of a class that acts on tokens
    count = len(plan.backbone.blocks if placement else _attention_names(plan.backbone))
    return Where(None if plan.share or placement == "position" else 0, count)


def _check_shareable(spec: Spec) -> None:
    if isinstance(spec.build, type) and "block" in required_sizes(spec.build):
        raise ValueError(
            f"share=True builds one {spec.name} for all blocks, but {spec.name} needs the index "
            "of its block; use share=False"
        )


def _build(
    plan: Plan, spec: Spec, near: nn.Module, site: AttentionSite | None, where: Where
) -> Encoding:
    """On the device and in the dtype of the module that it goes to."""
    parameter = _floating_parameter(near)
    source = _one_grid(plan, spec) if site is None else site.layout
    return spec.create(
        source.default(),
        {
            "num_heads": site.num_heads if site else None,
            "head_dim": site.head_dim if site else None,
            "embed_dim": plan.backbone.embed_dim,
            **where._asdict(),
        },
        plan.device_of(parameter),
        parameter.dtype,
    )


def _moved(plan: Plan, encoding: Encoding, near: nn.Module) -> Encoding:
    """The encoding, on the device and in the dtype of this module."""
    parameter = _floating_parameter(near)
    return encoding.to(device=plan.device_of(parameter), dtype=parameter.dtype)


def _floating_parameter(module: nn.Module) -> nn.Parameter:
    parameter = next(module.parameters())
    if not parameter.is_floating_point():
        raise UnsupportedModelError(
            f"{type(module).__name__} has {parameter.dtype} parameters: patch the floating point "
            "model, then quantise it"
        )
    return parameter


def _select(backbone: Backbone, blocks: Blocks) -> list[AttentionSite]:
    """Attention sites chosen by `blocks`, none of them refused."""
    if not callable(blocks):
        backbone.check_one_place()
    names = _attention_names(backbone)
    if not names:
        reasons = "; ".join(f"{n}: {reason}" for n, reason in backbone.left_alone.items())
        raise UnsupportedModelError(
            f"found no attention in the blocks of {type(backbone.module).__name__} that can be "
            f"patched ({reasons or 'none that posenc knows'})"
        )
    chosen = _choose(names, blocks)
    if not chosen:
        raise ValueError(
            f"blocks={blocks!r} selects none of the {len(names)} attention modules: "
            f"{names[0]} ... {names[-1]}"
        )
    for name in chosen:
        if name in backbone.refused:
            raise UnsupportedModelError(
                f"{name} cannot be patched: {backbone.refused[name]}. Leave it out with blocks="
            )
    return [site for site in backbone.attention if site.name in chosen]


def _attention_names(backbone: Backbone) -> list[str]:
    """What `blocks=` counts: names of attention modules, in the order of the model."""
    order = {name: index for index, (name, _) in enumerate(backbone.module.named_modules())}
    return sorted([*(s.name for s in backbone.attention), *backbone.refused], key=order.__getitem__)


def _choose(names: list[str], blocks: Blocks) -> list[str]:
    if blocks is None:
        return names
    if isinstance(blocks, slice):
        return names[blocks]
    if callable(blocks):
        return [name for name in names if blocks(name)]
    try:
        indices = [_index(i) for i in _collection(blocks)]
    except TypeError:
        raise ValueError(
            f"blocks must be None, indices, a slice or a predicate on the name, got {blocks!r}"
        ) from None
    for index in indices:
        if not -len(names) <= index < len(names):
            raise ValueError(
                f"blocks={blocks!r}: {index!r} is not an index of the model's {len(names)} "
                "attention modules"
            )
    return [names[index] for index in indices]


def _collection(blocks: Any) -> Iterable[Any]:
    is_one = isinstance(blocks, (Mapping, str)) or not isinstance(blocks, Iterable)
    return [blocks] if is_one else blocks


def _index(given: Any) -> int:
    """As Python's own indexing, but for booleans: a mask is no list of indices."""
    if isinstance(given, bool) or getattr(given, "dtype", None) is torch.bool:
        raise TypeError
    return operator.index(given)


def _check_computable(plan: Plan, planned: PlannedSite) -> None:
    """Raises with the backend's reason: not at the first forward."""
    site = planned.site
    if plan.backend == "auto" and site.value_dim == site.head_dim:
        return
    encodings = {**planned.own, **site.shared}
    chosen = [encodings[name] for name in site.attention]
    try:
        explain_site(planned.module, site, chosen)
    except ValueError as error:
        wider = site.value_dim != site.head_dim
        hint = f" (its values have width {site.value_dim}, its queries {site.head_dim})"
        raise UnsupportedModelError(f"{site.name}: {error}{hint if wider else ''}") from error


def _hide_table(plan: Plan) -> None:
    where, table = plan.backbone.family.table, plan.backbone.table
    if where is None or table is None:
        raise ValueError(
            f'absolute="hide": {type(plan.backbone.module).__name__} has no absolute position '
            'table that posenc can hide; use absolute="keep"'
        )
    _at(plan, where.module, HideTable(where.name, where.methods))
    for encoding in plan.encodings:
        if isinstance(encoding, LearnedAbsolute):
            _inherit(encoding, table, plan.backbone.table_grid)


def _inherit(encoding: LearnedAbsolute, table: nn.Parameter, grid: tuple[int, int] | None) -> None:
    """Takes over the values of the hidden table; a table without prefix rows leaves them 0."""
    rows = table.detach().flatten(1, -2)  # [1, height, width, C] in some models
    known = (encoding.layout.num_tokens, encoding.layout.num_grid)
    same_grid = grid in (None, encoding.layout.grid)
    if rows.shape[0] != 1 or rows.shape[1] not in known or not same_grid:
        raise ValueError(
            f"the model's table has {rows.shape[1]} rows ({list(table.shape)}, grid {grid}), the "
            f"layout {encoding.layout} has {encoding.layout.num_tokens} tokens: they cannot be "
            "taken over"
        )
    with torch.no_grad():
        encoding.table.zero_()
        encoding.table[-rows.shape[1] :] = rows[0]
    encoding.init = "inherited"


def _check_attributes(backbone: Backbone) -> None:
    for name, module in backbone.module.named_modules():
        for attribute in ("posenc", "_posenc", "_attend"):
            if hasattr(module, attribute):
                raise UnsupportedModelError(
                    f"{name or 'the model'} already has an attribute {attribute!r}, which posenc "
                    "would overwrite"
                )


@contextlib.contextmanager
def _untouched_rng(module: nn.Module) -> Iterator[None]:
    """Restores the random state afterwards, on the CPU and on the model's device."""
    device = next(module.parameters()).device
    on_accelerator = device.type not in ("cpu", "meta")
    devices = [device] if on_accelerator else []
    kind = device.type if on_accelerator else "cuda"
    with torch.random.fork_rng(devices=devices, device_type=kind):
        yield
