"""Records attention modules that are not patched, beside their own forward.

A twin of the module, whose class has its attention calls replaced, runs on the same arguments, so
that the output stays what it is: that of another way to compute attention would round otherwise.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from posenc.analysis.recorder import Recorder, is_replayed
from posenc.layout import TokenLayout
from posenc.patching.layouts import LayoutSource, SeenLayout
from posenc.patching.models.examine import Anatomy, AttentionSite, examine
from posenc.patching.sites.classes import Observer, Role, Site, site_class


def site_of(found: AttentionSite, layout: LayoutSource | None, observer: Observer) -> Site:
    """What the module would have as a site without encodings, in addition to what it is now."""
    known: Any = layout
    own: Site | None = vars(found.module).get("_posenc")
    adapter = (found.kind.adapter,) if found.kind.adapter else ()
    roles: set[Role] = {("attention", *adapter), *(own.roles if own else ())}
    if found.kind.map is not None:
        roles.add(("map", found.kind.map))
    return dataclasses.replace(
        own or Site(found.name, known, "auto"),
        layout=known,
        shape=found.kind.shape,
        num_heads=found.num_heads,
        head_dim=found.head_dim,
        value_dim=found.value_dim,
        roles=tuple(sorted(roles)),
        observers=(observer,),
    )


def record_aside(
    site: Site, recorder: Recorder, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Runs the forward of a module as that of a site, for what it records alone.

    The module's own forward then gives the output: one without fused attention rounds otherwise.
    """
    recorder.start()
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


def follow_images(anatomy: Anatomy, source: SeenLayout) -> contextlib.AbstractContextManager[None]:
    """Tells the layout of the image that the embedding saw."""
    family = anatomy.family

    def see(embedding: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        image = args[0] if args else next(iter(kwargs.values()))
        source.see(*family.seen_grid(embedding, image, result))

    return around_forward(anatomy.backbone.get_submodule(family.embedding), after=see)


@contextlib.contextmanager
def around_forward(
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


def examine_originals(model: nn.Module, layout: TokenLayout | None) -> Anatomy:
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
