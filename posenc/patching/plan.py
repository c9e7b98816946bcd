"""What a patch would do: everything is checked and built here, nothing is changed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from posenc.attention.api import check_backend
from posenc.encodings.base import check_layout
from posenc.encodings.learned import LearnedAbsolute
from posenc.layout import TokenLayout
from posenc.patching.layouts import SeenLayout
from posenc.patching.models.examine import Backbone, examine, warn_if_pointless
from posenc.patching.models.kinds import UnsupportedModelError
from posenc.patching.place import floating_parameter, place
from posenc.patching.planned import Plan, PlannedSite, at, at_root
from posenc.patching.select import Blocks
from posenc.patching.sites.explained import explain_site
from posenc.patching.sites.roles import BindLayout, HideTable, SeeImage
from posenc.patching.spec import EncodingLike, Spec, parse_specs
from posenc.registry import option_names


def make_plan(
    model: nn.Module,
    encoding: EncodingLike,
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
    floating_parameter(backbone.module)
    plan = Plan(backbone, specs, {}, share, absolute, backend, meta)
    # Parameters made inside inference_mode could never be trained.
    with _untouched_rng(backbone.module), torch.inference_mode(False):
        for spec in specs:
            place(plan, spec, blocks)
    if blocks is not None and not any(p.is_selected for p in plan.sites.values()):
        names = " and ".join(spec.name for spec in specs)
        raise ValueError(
            f"blocks={blocks!r} selects attention modules, but {names} acts on tokens"
            + _own_choice(specs)
        )
    if absolute == "hide":
        _hide_table(plan)
    _follow_images(plan)
    at_root(plan)
    if meta:
        return plan
    for planned in plan.sites.values():
        planned.new_class()
        if planned.site.attention:
            _check_computable(plan, planned)
    warn_if_pointless(backbone.layouts())
    return plan


def _own_choice(specs: list[Spec]) -> str:
    """The options with which encodings on tokens choose their blocks, in words."""
    options = [
        f"{spec.name} has {option}="
        for spec in specs
        for option in ("after", "at")
        if option in option_names(spec.build)
    ]
    return f" ({', '.join(options)})" if options else ""


def _follow_images(plan: Plan) -> None:
    """Who sees the images; and who remembers their layout, where it changes."""
    seen = plan.backbone.sees_images
    if seen is None:
        return
    embedding, seen_grid = seen
    at(plan, embedding, SeeImage()).site.seen_grid = seen_grid
    if isinstance(plan.backbone.layout, SeenLayout):
        for name in plan.backbone.blocks:
            at(plan, name, BindLayout())


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
    at(plan, where.module, HideTable(where.name, where.methods))
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
