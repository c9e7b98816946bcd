"""What a patch was asked for and what it was made for, as JSON values; and a patch from these."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from posenc.encodings.human_part import FIRST_VERSION
from posenc.layout import TokenLayout
from posenc.patching.layouts import patch_size_of
from posenc.patching.models.examine import Backbone, examine
from posenc.patching.models.kinds import Family
from posenc.patching.models.known import adapted_of, attention_of, family_of
from posenc.patching.models.others import OTHER
from posenc.patching.patch import (
    Model,
    apply_plan,
    check_unpatched,
    model_name,
    patched_backbone,
    site_modules,
    warn_of_changes,
)
from posenc.patching.plan import make_plan
from posenc.patching.planned import Plan
from posenc.registry import encoding_class, list_encodings, option_names

FORMAT = 2  # of a config; a change of its entries or of their meaning is a new number
# Encodings that are others since a format, and what files of older ones hold. What has none of them
# is written as format 1, which older versions of posenc read.
SINCE = {"human_part": (2, FIRST_VERSION)}
MAX_TOKENS = 2**18  # 512x512 patches: nobody's model, but a damaged file may say anything


def encoding_config(model: nn.Module) -> dict[str, Any]:
    """What `patch_model` was asked for and for which model, as JSON values.

    The entries are the format number, the encodings with all their options, the layout, the
    selected sites and the other arguments of `patch_model`; and of the model its depth, the names
    of its blocks, its width, the heads of the sites and the patch size, as far as they are known.
    `posenc.patch_from_config(model, config)` does the same to another model of that kind.

    Raises:
        ValueError: the model is not patched, an encoding of it has no registered name, or an
            option is no JSON value.
    """
    backbone = patched_backbone(model)
    asked = dict(backbone._posenc_record.config)
    # Blocks may have been pruned since.
    sites = {module._posenc.name: module._posenc for module in site_modules(backbone).values()}
    asked["sites"] = [name for name in asked["sites"] if name in sites]
    asked["windows"] = {name: grid for name, grid in asked["windows"].items() if name in sites}
    for spec in asked["encodings"]:
        _check_registered(spec)
    heads = {name: (sites[name].num_heads, sites[name].head_dim) for name in asked["sites"]}
    one_layout = backbone._posenc_record.layout is not None
    made_for = _made_for(backbone, family_of(backbone) or OTHER, one_layout, heads)
    return _plain({"format": _format_of(asked["encodings"]), **asked, **made_for})


def _format_of(encodings: list[dict[str, Any]]) -> int:
    """The oldest format in which these are what they are now."""
    return max(SINCE.get(spec["name"], (1, ""))[0] for spec in encodings)


def patch_from_config(model: Model, config: dict[str, Any]) -> Model:
    """Patches a model as another one was, in place, with fresh encodings.

    >>> import timm, posenc
    >>> def vit():
    ...     return timm.create_model("vit_tiny_patch16_224", img_size=(32, 48), depth=2)
    >>> config = encoding_config(posenc.patch_model(vit(), "swin", blocks=[1]))
    >>> posenc.patched_encodings(patch_from_config(vit(), config)).keys()
    dict_keys(['blocks.1.attn.swin'])

    Args:
        model: a model that is not patched, of the kind that the config was made for.
        config: of `posenc.encoding_config`; it may have been through JSON.

    Raises:
        TypeError: the config is no dictionary.
        ValueError: the config is damaged or of an unknown format, or was made for a model of
            another layout, depth, width, head count or patch size (the first mismatch is named
            with both values), or the model is already patched. Nothing was changed.

    Returns:
        The same model.
    """
    check_unpatched(model)
    if not isinstance(config, dict):
        raise TypeError(
            "config must be the dictionary that posenc.encoding_config(model) returned, got "
            f"{type(config).__name__}"
        )
    plan = plan_as(model, checked(_plain(config), "the config"), "config")
    warn_of_changes(plan)  # first: a warning may be an error
    apply_plan(plan)
    return model


def plan_as(model: nn.Module, config: dict[str, Any], what: str, *, meta: bool = False) -> Plan:
    """The plan of a checked config; with `meta` its encodings have shapes, but no memory."""
    layout = TokenLayout(**config["layout"]) if config["layout_given"] else None
    compare(config, _of_fresh(examine(model, layout), config), what)
    sites = set(config["sites"])
    place = torch.device("meta") if meta else contextlib.nullcontext()
    try:
        with place:
            return make_plan(
                model,
                encoding=[spec["name"] for spec in config["encodings"]],
                layout=layout,
                blocks=(lambda name: name in sites) if sites else None,
                share=config["share"],
                absolute=config["absolute"],
                backend=config["backend"],
                options={spec["name"]: spec["options"] for spec in config["encodings"]},
                meta=meta,
            )
    except (TypeError, ArithmeticError, RuntimeError, MemoryError) as error:
        names = " and ".join(spec["name"] for spec in config["encodings"])
        raise ValueError(
            f"{names} cannot be built with the options of the {what} ({type(error).__name__}: "
            f"{error!s:.200})" + (_META if meta else "")
        ) from error


_META = (
    " on the meta device, where posenc checks a file before it allocates memory. If this is an "
    "encoding of your own whose constructor reads values of tensors, patch the model as it was "
    "(posenc.patch_from_config, or posenc.patch_model), then load"
)


def compare(saved: dict[str, Any], current: dict[str, Any], what: str = "file") -> None:
    """Raises at the first entry of `current` in which a saved config differs, with both values."""
    for key in _ENTRIES:
        if key == "backend" or key not in current or saved[key] == current[key]:
            continue
        if key == "patch_size" and None in (saved[key], current[key]):  # nothing tells
            continue
        name, wanted, found = _first_difference(key, saved[key], current[key])
        raise ValueError(
            f"the {what} does not fit this model. Of the {what}, {name}: {wanted}; of the "
            f"model: {found}{_ADVICE.get(key, '')}"
        )


_SIZE = ". Create the model with that input size, load, then call set_input_size"
_ADVICE = {
    "layout": _SIZE,
    "windows": _SIZE,
    "model": ". Pass the part that was patched, such as model.visual",
    **dict.fromkeys(
        ("depth", "blocks", "width", "heads", "patch_size"),
        ". Encodings belong to the kind of model that they were trained in",
    ),
}


def _first_difference(key: str, saved: Any, current: Any) -> tuple[str, Any, Any]:
    """Name and both values; of the entries that have a value per site, of the first site."""
    if key not in ("heads", "windows"):
        return key, saved, current
    name = min(n for n in saved.keys() | current.keys() if saved.get(n) != current.get(n))
    return f"{key} of {name}", saved.get(name, "none"), current.get(name, "none")


def _of_fresh(backbone: Backbone, config: dict[str, Any]) -> dict[str, Any]:
    """What a model that is not patched says of itself, in the words of a config."""
    chosen = set(config["sites"])
    heads = {s.name: (s.num_heads, s.head_dim) for s in backbone.attention if s.name in chosen}
    layout = backbone.layout
    made_for = _made_for(backbone.module, backbone.family, layout is not None, heads)
    windows = {n: g for n, g in backbone.windows().items() if n in chosen}
    now = {
        "model": model_name(backbone),
        "layout": None if layout is None else vars(layout.default()),
        "windows": windows,
        "sites": sorted(heads),
    }
    return _plain({**now, **made_for})


def _made_for(
    module: Any, family: Family, one_layout: bool, heads: dict[str, Any]
) -> dict[str, Any]:
    """What a model is now, patched or not."""
    blocks = _block_names(module, family)
    return {
        "depth": len(blocks),
        "blocks": blocks,
        "width": int(module.embed_dim) if one_layout and family is not OTHER else None,
        "heads": heads,
        "patch_size": patch_size_of(getattr(module, family.embedding or "", None)),
    }


def _block_names(module: nn.Module, family: Family) -> list[str]:
    """Of the blocks that see one grid, else of all attention that posenc knows."""
    if family.embedding is not None:
        return [f"{family.blocks}{n}" for n, _ in _children(module, family.blocks)]
    kind = adapted_of if family is OTHER else attention_of
    return [n for n, m in module.named_modules() if n.startswith(family.blocks) and kind(m)]


def _children(module: nn.Module, prefix: str) -> list[tuple[str, nn.Module]]:
    return list(module.get_submodule(prefix.removesuffix(".")).named_children())


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """A copy in JSON values only."""
    try:
        copied: dict[str, Any] = json.loads(json.dumps(config, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"an option of the encodings is no JSON value: {error}") from error
    return copied


def _check_registered(spec: dict[str, Any]) -> None:
    """Raises when a file could not name an encoding, or would name another one."""
    name = spec["name"]
    if name not in list_encodings():
        raise ValueError(
            f"{name!r} is not registered, so a file could not name it: call "
            "posenc.register_encoding(name, class) and patch by that name"
        )
    _check_options(
        spec, f"the model was patched with something else than the {name!r} of the registry"
    )


# Checks of a config that anyone may have written


def checked(config: Any, where: str) -> dict[str, Any]:
    """The config, where it is one of this format; `where` is what messages call it.

    Raises:
        ValueError: something is missing or is no value that posenc writes.
    """
    if not isinstance(config, dict):
        raise ValueError(
            f"{where} was not written by posenc.save_encodings: it holds {config!r:.80}"
        )
    _check_format(config, where)
    for key, (fits, expected) in _ENTRIES.items():
        if key not in config:
            raise ValueError(f"{where} was not written by posenc.save_encodings: it has no {key!r}")
        if not fits(config[key]):
            raise ValueError(f"{where}: {key} must be {expected}, got {config[key]!r:.80}")
    if config["layout_given"] and config["layout"] is None:
        raise ValueError(f"{where}: layout_given is true, but layout is null")
    for spec in config["encodings"]:
        _check_age(spec["name"], config["format"], where)
        _check_options(spec, where)
    return config


def _check_format(config: dict[str, Any], where: str) -> None:
    number = config.get("format")
    if number is None:
        raise ValueError(
            f"{where} was not written by posenc.save_encodings: it has no format number"
        )
    if type(number) is int and number > FORMAT:
        raise ValueError(
            f"{where} has format {number}, and this posenc reads formats 1 to {FORMAT}: upgrade "
            "posenc"
        )
    if type(number) is not int or number < 1:
        raise ValueError(
            f"{where} has the unknown format {number!r:.80}, posenc reads 1 to {FORMAT}"
        )


def _check_age(name: str, number: int, where: str) -> None:
    """Raises where an encoding meant something else in files of this format."""
    since, reason = SINCE.get(name, (1, ""))
    if number < since:
        raise ValueError(
            f"{where} has format {number}, and {name} is read since format {since}: {reason}"
        )


def _check_options(spec: dict[str, Any], where: str) -> None:
    """Raises unless all options are there: a default could be another one than was saved."""
    name, options = spec["name"], spec["options"]
    try:
        known = set(option_names(encoding_class(name)))
    except ValueError as error:
        raise ValueError(
            f"{where}: {error}; an encoding of your own must be registered first, "
            "posenc.register_encoding(name, class)"
        ) from None
    for names, what in ((known - options.keys(), "lacks"), (options.keys() - known, "has unknown")):
        if names:
            raise ValueError(
                f"{where}: {name} {what} options: {', '.join(sorted(names)):.80}. All options are "
                f"written, those of {name} are {', '.join(sorted(known)) or 'none'}"
            )


def _is_count(value: Any, smallest: int = 1) -> bool:
    return type(value) is int and value >= smallest


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_count, value))


def _is_layout(value: Any) -> bool:
    if not isinstance(value, dict) or value.keys() != {"height", "width", "prefix"}:
        return False
    height, width, prefix = value["height"], value["width"], value["prefix"]
    counts = _is_count(height) and _is_count(width) and _is_count(prefix, 0)
    return counts and height * width + prefix <= MAX_TOKENS


def _is_encodings(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_spec, value))


def _is_spec(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"name", "options"}
        and isinstance(value["name"], str)
        and isinstance(value["options"], dict)
    )


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_pairs_by_name(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_pair, value.values()))


def _or_null(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


def _is(kind: type) -> Callable[[Any], bool]:
    return lambda value: type(value) is kind


# Every entry of a config: whether a value fits, and in words; in the order of comparison.
_ENTRIES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "model": (_or_null(_is(str)), "null or the name of a class"),
    "encodings": (_is_encodings, 'a list of {"name": a string, "options": an object}'),
    "layout": (
        _or_null(_is_layout),
        f"null or height, width and prefix, at most {MAX_TOKENS} tokens in all",
    ),
    "layout_given": (_is(bool), "true or false"),
    "depth": (lambda value: _is_count(value, 0), "a count"),
    "blocks": (_is_names, "a list of names"),
    "width": (_or_null(_is_count), "null or a positive integer"),
    "windows": (_is_pairs_by_name, "a pair of positive integers by name"),
    "heads": (_is_pairs_by_name, "a pair of positive integers by name"),
    "patch_size": (_or_null(_is_pair), "null or two positive integers"),
    "sites": (_is_names, "a list of names"),
    "share": (_is(bool), "true or false"),
    "absolute": (_is(str), "a string"),
    "backend": (_is(str), "a string"),
}
