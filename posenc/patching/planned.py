"""A patch before it is applied: modules, their roles and their new encodings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from posenc.encodings.base import Encoding
from posenc.intercept import CannotRewrite
from posenc.patching.models.examine import Backbone
from posenc.patching.models.kinds import UnsupportedModelError
from posenc.patching.models.others import OTHER
from posenc.patching.sites.classes import site_class
from posenc.patching.sites.roles import ReplaceAttention, Role, Root, in_order
from posenc.patching.sites.site import Site
from posenc.patching.spec import Spec


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

    @property
    def is_selected(self) -> bool:
        """Whether it is an attention module that `blocks=` selected."""
        return self.site.num_heads > 0

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


def at(plan: Plan, name: str, role: Role | None) -> PlannedSite:
    """The planned site of a module by name, with one more role.

    Raises:
        UnsupportedModelError: the module is another site already, or a method that the role
            replaces stands on the instance.
    """
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


def at_root(plan: Plan) -> PlannedSite:
    """The backbone, whose class changes only where optimizers will ask it about parameters.

    Other libraries write down the names of their classes.
    """
    module = plan.backbone.module
    asked = plan.backbone.family is not OTHER or hasattr(module, "no_weight_decay")
    return at(plan, "", Root() if asked else None)


def own(plan: Plan, planned: PlannedSite, name: str, encoding: Encoding) -> None:
    """Gives an encoding to its site, or to the root where all share it."""
    if not plan.share and any(encoding is other for other in plan.encodings):
        raise ValueError(
            f"{name}: the callable returned the same module for two sites; return a new one each "
            "time, or pass share=True"
        )
    if plan.share:
        # Registered once, on the root: EMA and safetensors then see it once.
        at_root(plan).own[name] = encoding
        planned.site.shared[name] = encoding
    else:
        planned.own[name] = encoding
