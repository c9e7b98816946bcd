"""`patch_model` and back."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from torch import Tensor, nn

from posenc._torch import is_strict_load, load_hooks
from posenc.attention import BackendName
from posenc.encodings.base import Encoding, unfit
from posenc.encodings.learned import LearnedAbsolute
from posenc.layout import TokenLayout
from posenc.patching.layouts import EmbeddingLayout, LayoutSource
from posenc.patching.models.examine import Backbone, check_model, check_module
from posenc.patching.models.others import OTHER
from posenc.patching.names import is_of_encoding
from posenc.patching.own_positions import doubled_rotary, own_positions
from posenc.patching.plan import make_plan
from posenc.patching.planned import Plan, PlannedSite
from posenc.patching.select import Blocks
from posenc.patching.sites.classes import site_class
from posenc.patching.sites.roles import in_order
from posenc.patching.sites.site import Site
from posenc.patching.spec import EncodingLike, Spec
from posenc.registry import resolved_options

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class PatchRecord:
    """What a patch did; kept on the backbone as its attribute `_posenc_record`.

    Args:
        layout: of the model's tokens; None where stages or windows have their own.
        hidden: name of the absolute table that is hidden, or None.
        table_required_grad: the table's flag before.
        config: what was asked for, JSON-able where the encodings are registered.
        shapes: of the new entries of the backbone's state dict.
    """

    layout: LayoutSource | None
    hidden: str | None
    table_required_grad: bool
    config: dict[str, Any]
    shapes: dict[str, list[int]]


def patch_model(
    model: Model,
    encoding: EncodingLike = "irpe",
    *,
    layout: TokenLayout | None = None,
    blocks: Blocks = None,
    share: bool = False,
    absolute: Literal["keep", "hide"] = "keep",
    backend: BackendName = "auto",
    **options: Any,
) -> Model:
    """Gives a vision transformer a position encoding, in place.

    Old weights, keys and parameter identities stay; new keys are `<site>.posenc.<name>.*`. The
    encodings start without effect where their definition allows it (a warning names those that
    do not). Everything is checked first: after an exception the model is as it was.

    Args:
        model: a timm vision transformer (`posenc.supports(model)` tells), or a module that
            contains one; a ViT, DeiT, DINOv2, DINOv3, CLIP or SigLIP of Hugging Face; with
            `layout=` also any model with attention of torch (`nn.MultiheadAttention`), of timm or
            of these, or of a class that `posenc.register_attention` made known.
        encoding: a name, `"a+b"`, an encoding class, a callable `(layout, num_heads, head_dim,
            embed_dim) -> encoding`, or a list of these.
        layout: of the tokens; default: what the model's patch embedding says. A model that takes
            images of any size is followed: there it sizes the new parameters only. A model of
            Hugging Face tells the layout of its config's image size; give that of your images
            where they are of another (`interpolate_pos_encoding=True`, DINOv2, DINOv3): each image
            is compared with it. Other models outside timm need it, for all attention that is
            patched.
        blocks: the attention modules to patch: None (all), indices, a slice, or a predicate on
            the module name. What acts on tokens of blocks has options of its own: `after` of
            `peg`, `at` of `lpu` and `local_ffn`.
        share: one encoding for all sites instead of one each.
        absolute: "keep" the model's own position table, or "hide" it (not deleted;
            "learned" then takes over its values).
        backend: of `posenc.attend`, for all sites.
        **options: of the encoding; with several, options that only one of them has, or
            `name=dict(...)`.

    An encoding class may ask where it stands, by its constructor's arguments `block` and
    `num_blocks`: the index of its attention module among those that `blocks=` counts (of all
    stages together), or of the block that it acts in or after, and their number.

    Raises:
        ValueError: an unknown name or option, a model or module that cannot be patched (with the
            reason), a selection that matches nothing, a model that is already patched.
        TypeError: no module, or an encoding, layout or flag of the wrong type.

    Returns:
        The same model.

    >>> import timm
    >>> vit = timm.create_model("vit_tiny_patch16_224", img_size=(32, 48), depth=2)
    >>> model = patch_model(vit, "peg+irpe", irpe=dict(mode="bias"))
    >>> [key for key in model.state_dict() if "posenc" in key][:2]
    ['blocks.0.attn.posenc.irpe.table_k', 'blocks.0.posenc.peg.weight']
    """
    check_unpatched(model)
    plan = make_plan(model, encoding, layout, blocks, share, absolute, backend, options)
    warn_of_changes(plan)  # first: a warning may be an error
    apply_plan(plan)
    return model


def check_unpatched(model: nn.Module) -> None:
    """Raises unless `model` is a module, and nothing in it is patched."""
    check_model(model)
    if (holder := find_patched(model)) is not None:
        names = ", ".join(spec["name"] for spec in holder._posenc_record.config["encodings"])
        raise ValueError(
            f"the model is already patched with {names}; call posenc.unpatch_model(model) first, "
            'or patch with several at once: patch_model(model, "a+b")'
        )


def unpatch_model(model: Model) -> Model:
    """Takes every encoding out again: classes, keys, flags and outputs are as before the patch.

    Trained weights of the model itself stay as they are.

    Raises:
        ValueError: the model is not patched, or a site's class was changed after the patch.
    """
    backbone = patched_backbone(model)
    record: PatchRecord = backbone._posenc_record
    modules = site_modules(backbone)
    for name, module in modules.items():
        roles = module._posenc.roles
        original = getattr(type(module), "posenc_original_class", None)
        if roles and (original is None or type(module) is not site_class(original, roles)):
            raise ValueError(
                f"{name or 'the model'} is a {type(module).__name__}, not the class that "
                "patch_model gave it: undo what wrapped it (FSDP, parametrize) first"
            )
    for module in modules.values():
        site: Site = vars(module).pop("_posenc")
        if site.roles:
            module.__class__ = type(module).posenc_original_class
        module._modules.pop("posenc", None)
        if site.fused_attn is not None:
            module.fused_attn = site.fused_attn
    if record.hidden:
        # A model whose training was switched off since stays so.
        trained = any(parameter.requires_grad for parameter in backbone.parameters())
        table = backbone.get_parameter(record.hidden)
        table.requires_grad_(table.requires_grad or (record.table_required_grad and trained))
    del backbone._posenc_record
    hooks = load_hooks(backbone)
    for key in [key for key, hook in hooks.items() if hook.hook is _check_state_dict]:
        del hooks[key]
    return model


def is_patched(model: nn.Module) -> bool:
    """Whether `patch_model` was applied to the model or to something in it."""
    return find_patched(model) is not None


def find_patched(model: nn.Module) -> Any:
    """The patched backbone in `model`, or None.

    Raises:
        TypeError: not a module.
    """
    check_module(model)
    return next((m for m in model.modules() if "_posenc_record" in vars(m)), None)


def patched_backbone(model: nn.Module) -> Any:
    """The patched backbone in `model`.

    Raises:
        ValueError: there is none.
    """
    return named_backbone(model)[1]


def named_backbone(model: nn.Module) -> tuple[str, Any]:
    """The patched backbone in `model` and its name there.

    Raises:
        TypeError: not a module.
        ValueError: there is none, or several.
    """
    check_module(model)
    found = [(n, m) for n, m in model.named_modules() if "_posenc_record" in vars(m)]
    if not found:
        raise ValueError(
            f"{type(model).__name__} is not patched; call posenc.patch_model(model, ...) first"
        )
    if len(found) > 1:
        names = ", ".join(name for name, _ in found)
        raise ValueError(f"{len(found)} patched models are in it ({names}): name one of them")
    return found[0]


def site_modules(backbone: Any) -> dict[str, Any]:
    """Name -> module of the sites that are there now: blocks may have been pruned or wrapped."""
    return {name: m for name, m in backbone.named_modules() if "_posenc" in vars(m)}


def planned_state(plan: Plan) -> dict[str, Tensor]:
    """What `encoding_state_dict` will hold once the plan is applied."""
    return {
        f"{name and f'{name}.'}posenc.{own}.{key}": value
        for name, planned in plan.sites.items()
        for own, encoding in planned.own.items()
        for key, value in encoding.state_dict().items()
    }


def apply_plan(plan: Plan) -> None:
    """Changes the model; nothing here can fail."""
    backbone: Any = plan.backbone.module
    table = plan.backbone.table
    hidden = plan.absolute == "hide"
    record = PatchRecord(
        layout=plan.backbone.layout,
        hidden=_table_name(plan) if hidden else None,
        table_required_grad=bool(table is not None and table.requires_grad),
        config=_config(plan),
        shapes={key: list(value.shape) for key, value in planned_state(plan).items()},
    )
    for planned in plan.sites.values():
        module: Any = planned.module
        planned.site.roles = in_order(planned.roles)
        planned.site.fused_attn = _fused(planned)
        module.__class__ = planned.new_class()
        module._posenc = planned.site
        if planned.own:
            module.posenc = nn.ModuleDict(planned.own).train(module.training)
        if _fused(planned) is not None:
            module.fused_attn = True
    if hidden and table is not None:
        table.requires_grad_(False)  # or DDP would wait for its gradient
    backbone._posenc_record = record
    backbone.register_load_state_dict_pre_hook(_check_state_dict)


def _table_name(plan: Plan) -> str:
    where: Any = plan.backbone.family.table
    return ".".join(filter(None, [where.module, where.name]))


def _check_state_dict(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Runs before `load_state_dict` changes anything in the backbone, strict or not."""
    names = (key.removeprefix(prefix) for key in state_dict if key.startswith(prefix))
    given = {name for name in names if is_of_encoding(name)}
    own = {name: v for name, v in module.state_dict().items() if is_of_encoding(name)}
    for name in sorted(given):
        if fault := unfit(state_dict[prefix + name], own.get(name)):
            raise ValueError(f"{prefix}{name} {fault[0]}; nothing was loaded: {fault[1]}")
    _check_versions(module, prefix, given)
    if given and given != own.keys():
        name = min(given ^ own.keys())
        where = "the state dict" if name in own else "the model"
        raise ValueError(
            f"the state dict has {len(given & own.keys())} of the model's {len(own)} encoding "
            f"tables ({prefix}{name} is missing in {where}); nothing was loaded. Patch a fresh "
            "model as the one that was saved (posenc.patch_from_config with its "
            "posenc.encoding_config), or leave all keys with '.posenc.' out and load with "
            "strict=False"
        )
    if own and not given and is_strict_load():
        raise ValueError(
            f"the state dict has none of the model's {len(own)} encoding tables ({prefix}"
            f"{min(own)}, ...), as that of a model that was not patched; nothing was loaded. Load "
            "first, then patch; or load with strict=False, which leaves the encodings as they are"
        )


def _check_versions(backbone: nn.Module, prefix: str, given: set[str]) -> None:
    """Raises at a parameter that an encoding had in a former version."""
    for path, module in backbone.named_modules():
        for name, reason in module.outdated.items() if isinstance(module, Encoding) else ():
            if f"{path}.{name}" in given:
                raise ValueError(f"{prefix}{path}.{name}: nothing was loaded, {reason}")


def _fused(planned: PlannedSite) -> Any:
    return getattr(planned.module, "fused_attn", None) if planned.is_attention else None


def _config(plan: Plan) -> dict[str, Any]:
    source = plan.backbone.layout
    return {
        "model": model_name(plan.backbone),
        "encodings": [
            {"name": spec.name, "options": resolved_options(spec.build, spec.options)}
            for spec in plan.specs
        ],
        "layout": None if source is None else vars(source.default()).copy(),
        "layout_given": not isinstance(source, EmbeddingLayout | None),
        "windows": {n: list(g) for n, g in plan.backbone.windows().items() if n in plan.sites},
        "sites": sorted(name for name, p in plan.sites.items() if p.is_selected),
        "share": plan.share,
        "absolute": plan.absolute,
        "backend": plan.backend,
    }


def model_name(backbone: Backbone) -> str | None:
    """Class of a model outside timm, whose sites have names relative to what was passed."""
    return type(backbone.module).__name__ if backbone.family is OTHER else None


def warn_of_changes(plan: Plan) -> None:
    """Warns where outputs change at once or rotary meets rotary; called by what the user called."""
    by_name = {name: e for planned in plan.sites.values() for name, e in planned.own.items()}
    starts = {spec.name: by_name[spec.name].changes_at_start() for spec in plan.specs}
    reasons = [
        f"{type(by_name[spec.name]).__name__} has an effect from the start"
        f"{_advice(plan, spec, by_name[spec.name])}"
        for spec in plan.specs
        if starts[spec.name]
    ]
    inherits = any(isinstance(encoding, LearnedAbsolute) for encoding in by_name.values())
    if plan.absolute == "hide" and not inherits:
        reasons.append("the model's position table is hidden")
    gives = "gives" if reasons else "may give"
    reasons += [
        f"whether {type(by_name[name]).__name__} has an effect from the start is unknown (its "
        "changes_at_start() does not say)"
        for name, start in starts.items()
        if start is None
    ]
    if reasons:
        warnings.warn(
            f"posenc: the patched model {gives} other outputs than before: {'; '.join(reasons)}",
            stacklevel=3,
        )
    for doubled in doubled_rotary(by_name, own_positions(plan.backbone.module)):
        warnings.warn(f"posenc: {doubled}", stacklevel=3)


def _advice(plan: Plan, spec: Spec, encoding: Encoding) -> str:
    """The option with which the encoding starts without effect, if it has one."""
    if next(encoding.parameters(), None) is None:
        return ""  # nothing learns: without effect at the start, it would stay so
    defaults = resolved_options(spec.build, {})
    if "strength" in defaults:
        option = "strength=0"
    elif defaults.get("init") == "zero":
        option = "init='zero'"
    else:
        return ""
    option = option if len(plan.specs) == 1 else f"{spec.name}=dict({option})"
    return f" ({option} starts without)"
