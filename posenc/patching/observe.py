"""The one door through which analysis watches a model: each attention call, as it is computed.

Modules that are patched tell it themselves. Those that are not are computed a second time beside
their own forward: a twin of the module, whose class has its attention calls replaced, runs on the
same arguments, so that the output stays what it is (that of another way to compute attention would
round otherwise).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from posenc._torch import NO_BACKWARD, backward_task, is_compiled_in_place
from posenc.layout import TokenLayout
from posenc.patching.layouts import GivenLayout, LayoutSource, MapLayout, SeenGrid, SeenLayout
from posenc.patching.models.examine import AttentionSite, Backbone, check_module, examine
from posenc.patching.models.kinds import UnsupportedModelError
from posenc.patching.models.known import adapted_of, family_of
from posenc.patching.patch import find_patched, named_backbone, site_modules
from posenc.patching.sites.classes import site_class
from posenc.patching.sites.roles import ReplaceAttention, Role, SeeMap, in_order
from posenc.patching.sites.site import Observer, Site

ObserverOf = Callable[[str], Observer]  # name of an attention module -> its observer


@contextlib.contextmanager
def observe_attention(
    model: nn.Module, layout: TokenLayout | None, observer_of: ObserverOf, caller: str
) -> Iterator[Watch]:
    """Inside, each attention module tells its observer what it computes.

    Outputs, gradients and the random state of the model are bit for bit those without it.

    Args:
        model: any model that could be patched, or is.
        layout: as for `patch_model`.
        observer_of: makes the observer of a module.
        caller: who asks, for messages.

    Raises:
        ValueError: the model is compiled, or not known and not patched (with the reason).

    Yields:
        What is not observed, and which modules see a part of the image.
    """
    _check_recordable(model, caller)
    with contextlib.ExitStack() as stack:
        watch = Watch(observer_of, stack, caller)
        if find_patched(model) is not None:
            _watch_patched(model, layout, watch)
        else:
            _watch_plain(model, layout, watch)
        yield watch


@contextlib.contextmanager
def follow_layout(
    model: nn.Module, layout: TokenLayout | None, caller: str
) -> Iterator[tuple[Backbone, LayoutSource]]:
    """Inside, the source that is yielded knows the layout of the tokens that the model sees.

    Args:
        model: any model that could be patched, or is.
        layout: as for `patch_model`.
        caller: who asks, for messages.

    Raises:
        ValueError: the model is not known, or its stages or windows have grids of their own.

    Yields:
        The backbone, whose `name` is that in the model, and the source.
    """
    with contextlib.ExitStack() as stack:
        backbone, source = told_layout(model, layout, caller)
        if source is None:
            raise UnsupportedModelError(
                f"{caller}: the stages or windows of {type(backbone.module).__name__} have grids "
                "of their own, so its blocks have no common layout"
            )
        if find_patched(model) is None and backbone.sees_images is not None:
            stack.enter_context(_follow_images(backbone, *backbone.sees_images))
        yield backbone, source


def told_layout(
    model: nn.Module, layout: TokenLayout | None, caller: str
) -> tuple[Backbone, LayoutSource | None]:
    """The backbone of a model and what tells the layout of its tokens; None where stages do.

    Raises:
        ValueError: the model is not known.
    """
    if find_patched(model) is not None:
        _check_knows_layout(layout, caller)
        name, module = named_backbone(model)
        backbone = dataclasses.replace(_examine_patched(module), name=name)
        return backbone, module._posenc_record.layout
    backbone = examine_originals(model, layout)
    return backbone, backbone.layout


def _examine_patched(module: Any) -> Backbone:
    """The parts of a patched backbone, at the layout that it was told, if it was told one."""
    source: LayoutSource | None = module._posenc_record.layout
    given = source.default() if isinstance(source, GivenLayout | SeenLayout) else None
    return examine_originals(module, given)


def is_replayed() -> bool:
    """Whether activation checkpointing runs a forward again, inside backward."""
    return backward_task() != NO_BACKWARD


@dataclasses.dataclass
class Watch:
    """What is done to watch, and undone at the end by the stack.

    Args:
        observer_of: makes the observer of a module.
        stack: undoes it.
        caller: who asks, for messages.
        left_out: name of an attention module that is not observed -> why.
        own_grids: names of modules whose tokens are a window, or a stage.
    """

    observer_of: ObserverOf
    stack: contextlib.ExitStack
    caller: str
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)
    own_grids: set[str] = dataclasses.field(default_factory=set)

    def leave_out(self, prefix: str, reasons: dict[str, str]) -> None:
        """Notes modules that are not observed."""
        for name, reason in reasons.items():
            self.left_out[".".join(filter(None, [prefix, name]))] = reason

    def observer(self, name: str, layout: LayoutSource, whole: LayoutSource | None) -> Observer:
        """That of a module, whose layout may be another than that of the whole model."""
        if isinstance(layout, MapLayout):
            layout = layout.rest
        if layout is not whole:
            self.own_grids.add(name)
        return self.observer_of(name)


def _check_recordable(model: Any, caller: str) -> None:
    check_module(model)
    for name, module in model.named_modules():
        if type(module).__name__ == "OptimizedModule" or is_compiled_in_place(module):
            raise ValueError(
                f"{caller}: {name or 'the model'} is compiled by torch.compile, and "
                "compiled code does not record: pass the model that was compiled (what went into "
                "torch.compile), and call that one, or capture before model.compile()"
            )


def _watch_patched(model: nn.Module, layout: TokenLayout | None, watch: Watch) -> None:
    """Observes the sites of a patched model, and the attention modules that are none."""
    _check_knows_layout(layout, watch.caller)
    prefix, module = named_backbone(model)
    selected = {n: m for n, m in site_modules(module).items() if m._posenc.num_heads}
    observed = {n: m for n, m in selected.items() if m._posenc.attention}
    source: LayoutSource | None = module._posenc_record.layout
    if family_of(module) is None:
        watch.leave_out(prefix, _unpatched_outside_timm(module, selected))
        for found in [_found(n, m) for n, m in selected.items() if n not in observed]:
            _watch_twin(found, found.layout, source, prefix, watch)
    else:
        backbone = _examine_patched(module)
        there = set(map(id, observed.values()))
        backbone.attention = [site for site in backbone.attention if id(site.module) not in there]
        _watch_twins(backbone, source, prefix, watch)
    for name, site_module in observed.items():
        full_name = _full_name(prefix, name, site_module)
        observer = watch.observer(full_name, site_module._posenc.layout, source)
        _observe_site(site_module, observer, watch.stack)


def _check_knows_layout(layout: TokenLayout | None, caller: str) -> None:
    if layout is not None:
        raise ValueError(
            f"{caller}: layout={layout} was passed, but the model is patched and knows its "
            "layout: leave layout= out, or call posenc.set_layout(model, layout)"
        )


def _watch_plain(model: nn.Module, layout: TokenLayout | None, watch: Watch) -> None:
    """Observes the attention modules of a model that is not patched."""
    backbone = examine_originals(model, layout)
    backbone.check_one_place()
    if not backbone.attention:
        reasons = "; ".join(f"{n}: {why}" for n, why in _reasons(backbone).items())
        raise UnsupportedModelError(
            f"{watch.caller}: {type(model).__name__} has no attention that can be recorded "
            f"({reasons or 'none that posenc knows'})"
        )
    _check_not_bypassed(model, watch.caller)
    if backbone.sees_images is not None:
        watch.stack.enter_context(_follow_images(backbone, *backbone.sees_images))
    _watch_twins(backbone, backbone.layout, backbone.name, watch)


def _check_not_bypassed(model: nn.Module, caller: str) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            raise UnsupportedModelError(
                f"{caller}: {name or 'the model'} is a {type(module).__name__}, which "
                "does not call its attention module in eval but computes all by itself: patch the "
                "model first (posenc.patch_model, with an encoding that starts without effect)"
            )


def _unpatched_outside_timm(module: nn.Module, selected: dict[str, Any]) -> dict[str, str]:
    """Its other attention modules may belong to other tokens: their layout is not known."""
    reason = "it is not patched, and the model's layout may not be that of its tokens"
    there = set(map(id, selected.values()))
    return {
        name: reason
        for name, each in module.named_modules()
        if adapted_of(each) is not None and id(each) not in there
    }


def _watch_twins(
    backbone: Backbone, layout: LayoutSource | None, prefix: str, watch: Watch
) -> None:
    """Observes attention modules that are not patched; `layout` is that of all tokens."""
    watch.leave_out(prefix, _reasons(backbone))
    for found in backbone.attention:
        own = layout if found.layout is backbone.layout else found.layout
        _watch_twin(found, own, backbone.layout, prefix, watch)


def _found(name: str, module: Any) -> AttentionSite:
    """An attention module of a patch, whose own attention stays, as it was found."""
    kind: Any = adapted_of(module)
    site: Site = module._posenc
    sizes = site.num_heads, site.head_dim, site.value_dim
    return AttentionSite(name, module, kind, site.layout, *sizes, width=None)


def _watch_twin(
    found: AttentionSite,
    layout: LayoutSource | None,
    whole: LayoutSource | None,
    prefix: str,
    watch: Watch,
) -> None:
    """Observes one of them at this layout; `whole` is that of all tokens, as it was found."""
    full_name = _full_name(prefix, found.name, found.module)
    observer = watch.observer(full_name, found.layout, whole)
    run = functools.partial(_run_twin, _twin_site(found, layout, observer), observer)
    watch.stack.enter_context(_around_forward(found.module, before=run))
    if found.kind.map_of:
        watch.stack.enter_context(_see_map(found))


def _see_map(found: AttentionSite) -> contextlib.AbstractContextManager[None]:
    """Tells the layout of the map that a submodule receives."""
    source: Any = found.layout
    axis = str(found.kind.map).split().index("h")

    def see(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        source.see(*args[0].shape[axis : axis + 2])

    return _around_forward(found.module.get_submodule(found.kind.map_of), before=see)


def _observe_site(module: Any, observer: Observer, stack: contextlib.ExitStack) -> None:
    site: Site = module._posenc

    def stop() -> None:
        site.observers = tuple(each for each in site.observers if each is not observer)

    site.observers = (*site.observers, observer)
    stack.callback(stop)
    stack.enter_context(_around_forward(module, before=lambda *_: observer.start()))


def _reasons(backbone: Backbone) -> dict[str, str]:
    return {**backbone.refused, **backbone.left_alone}


def _full_name(prefix: str, name: str, module: nn.Module) -> str:
    return ".".join(filter(None, [prefix, name])) or original_class(module).__name__


def _twin_site(found: AttentionSite, layout: LayoutSource | None, observer: Observer) -> Site:
    """What the module would have as a site without encodings, in addition to what it is now."""
    known: Any = layout
    own: Site | None = vars(found.module).get("_posenc")
    roles: set[Role] = {ReplaceAttention(found.kind.adapter), *(own.roles if own else ())}
    if found.kind.map is not None and not found.kind.map_of:
        roles.add(SeeMap(found.kind.map))
    return dataclasses.replace(
        own or Site(found.name, known, "auto"),
        layout=known,
        shape=found.kind.shape,
        num_heads=found.num_heads,
        head_dim=found.head_dim,
        value_dim=found.value_dim,
        roles=in_order(list(roles)),
        observers=(observer,),
    )


def _run_twin(
    site: Site, observer: Observer, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Runs the forward of a module as that of a site, for what it tells alone."""
    observer.start()
    if is_replayed():
        return
    twin: Any = object.__new__(site_class(original_class(module), site.roles))
    vars(twin).update(vars(module))
    vars(twin)["_posenc"] = site
    if hasattr(module, "fused_attn"):
        vars(twin)["fused_attn"] = True
    with _without_a_trace(module):
        twin.forward(*args, **kwargs)


@contextlib.contextmanager
def _without_a_trace(module: nn.Module) -> Iterator[None]:
    """Neither a graph nor random numbers; nor casts that autocast would hand to the forward."""
    device = next(module.parameters()).device
    on_accelerator = device.type not in ("cpu", "meta")
    kind = device.type if on_accelerator else "cuda"
    remembers_casts = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        with (
            torch.no_grad(),
            torch.random.fork_rng(devices=[device] if on_accelerator else [], device_type=kind),
        ):
            yield
    finally:
        torch.set_autocast_cache_enabled(remembers_casts)


def _follow_images(
    backbone: Backbone, embedding: str, seen_grid: SeenGrid
) -> contextlib.AbstractContextManager[None]:
    """Tells the layout of the image that the embedding saw."""
    source: Any = backbone.layout

    def see(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        image = args[0] if args else next(iter(kwargs.values()))
        source.see(*seen_grid(module, image, result))

    return _around_forward(backbone.module.get_submodule(embedding), after=see)


@contextlib.contextmanager
def _around_forward(
    module: Any,
    before: Callable[[Any, tuple[Any, ...], dict[str, Any]], None] | None = None,
    after: Callable[[Any, tuple[Any, ...], dict[str, Any], Any], None] | None = None,
) -> Iterator[None]:
    """Inside, calls `before` and `after` around the forward of a module.

    By a class of its own rather than by hooks: copies and pickles then are as they were.
    """
    original: Any = type(module)

    @functools.wraps(original.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if before is not None:
            before(self, args, kwargs)
        result = original.forward(self, *args, **kwargs)
        if after is not None:
            after(self, args, kwargs, result)
        return result

    def reduce(self: Any, protocol: int) -> Any:
        reduced = original.__reduce_ex__(self, protocol)
        if type(self) not in reduced[1]:  # a patched module names its recipe
            return reduced
        return (object.__new__, (original,), *reduced[2:])

    members = {"forward": forward, "__reduce_ex__": reduce, "_posenc_around": original}
    kept = {"__module__": original.__module__, "__doc__": original.__doc__}
    module.__class__ = type(original.__name__, (original,), {**kept, **members})
    try:
        yield
    finally:
        module.__class__ = original


def examine_originals(model: nn.Module, layout: TokenLayout | None) -> Backbone:
    """The parts of a model, whose modules have their original classes meanwhile."""
    classes = {module: type(module) for module in model.modules()}
    try:
        for module in classes:
            if (original := original_class(module)) is not type(module):
                module.__class__ = original
        return examine(model, layout)
    finally:
        for module, own in classes.items():
            if type(module) is not own:
                module.__class__ = own


def original_class(module: nn.Module) -> Any:
    """The class without what a context or a patch made of it."""
    own: Any = type(module)
    while hasattr(own, "_posenc_around"):
        own = own._posenc_around
    return getattr(own, "posenc_original_class", own)
