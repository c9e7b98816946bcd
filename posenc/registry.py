"""Names of encodings, and how to build one."""

from __future__ import annotations

import difflib
import fnmatch
import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from posenc import encodings
from posenc.encodings.base import AttentionEncoding, Encoding, TokenEncoding, check_layout
from posenc.layout import TokenLayout

# What an encoding's constructor may ask for besides the layout.
SIZES = ("num_heads", "head_dim", "embed_dim", "block", "num_blocks")
# Arguments of `patch_model`: `name=dict(...)` could not mean an encoding of that name.
RESERVED = (
    "model",
    "encoding",
    "layout",
    "blocks",
    "share",
    "absolute",
    "backend",
    "device",
    "dtype",
)
# What others call the encodings: for hints, these are no names.
OTHER_WORDS = {
    "absolute": "learned",
    "absolute_learned": "learned",
    "ape": "learned",
    "learnable": "learned",
    "learned_absolute": "learned",
    "pos_embed": "learned",
    "vit": "learned",
    "fixed": "sinusoidal",
    "mae": "sinusoidal",
    "sin": "sinusoidal",
    "sin_cos": "sinusoidal",
    "sincos": "sinusoidal",
    "sincos2d": "sinusoidal",
    "sincos_2d": "sinusoidal",
    "sine": "sinusoidal",
    "sinusoid": "sinusoidal",
    "baseline": "none",
    "identity": "none",
    "no_encoding": "none",
    "no_position": "none",
    "nope": "none",
    "fourier_features": "fourier",
    "learned_fourier": "fourier",
    "learnable_fourier": "fourier",
    "lff": "fourier",
    "conditional": "peg",
    "cpe": "peg",
    "cpvt": "peg",
    "depthwise": "peg",
    "pos_cnn": "peg",
    "poscnn": "peg",
    "cmt": "lpu",
    "local_perception_unit": "lpu",
    "irffn": "local_ffn",
    "localvit": "local_ffn",
    "locally_enhanced_ffn": "local_ffn",
    "convolutional_projection": "conv_projection",
    "cvt": "conv_projection",
    "contextual": "irpe",
    "image_rpe": "irpe",
    "relative": "irpe",
    "relative_position": "irpe",
    "relpos": "irpe",
    "rel_pos": "irpe",
    "rpe": "irpe",
    "bias": "swin",
    "rel_pos_bias": "swin",
    "relative_bias": "swin",
    "relative_position_bias": "swin",
    "relpos_bias": "swin",
    "rpb": "swin",
    "swin_bias": "swin",
    "swinbias": "swin",
    "continuous_bias": "cpb",
    "continuous_position_bias": "cpb",
    "log_cpb": "cpb",
    "swin_v2": "cpb",
    "cosine_attention": "cosine",
    "cosine_similarity": "cosine",
    "scaled_cosine": "cosine",
    "scaled_cosine_attention": "cosine",
    "axial_rope": "rope",
    "croco": "rope",
    "dinov3": "rope",
    "eva": "rope",
    "roformer": "rope",
    "rope2d": "rope",
    "rope_2d": "rope",
    "rope_axial": "rope",
    "rotary": "rope",
    "rotary_2d": "rope",
    "rotary_embedding": "rope",
    "mixed_rope": "rope_mixed",
    "rope_learned": "rope_mixed",
    "rope_vit": "rope_mixed",
    "beit_bias": "beit",
    "beitv2": "beit",
    "cls_bias": "beit",
    "attention_bias": "levit",
    "attention_biases": "levit",
    "tinyvit": "levit",
    "inkling": "relative_logits",
    "rel_logits": "relative_logits",
    "pape_ri": "pape",
    "parabolas": "pape",
    "parabolic": "pape",
    "relative_key": "huang",
    "relative_key_query": "huang",
    "relative_position_representations": "shaw",
    "halonet": "sasa",
    "stand_alone": "sasa",
    "untied": "tupe",
    "rpr": "shaw",
    "gated": "convit",
    "gpsa": "convit",
    "log_buckets": "t5",
    "t5_bias": "t5",
    "t5_buckets": "t5",
    "convolution": "quadratic",
    "cordonnier": "quadratic",
    "gaussian": "quadratic",
    "quad": "quadratic",
    "alibi": "alibi_2d",
    "alibi2d": "alibi_2d",
    "croma": "alibi_2d",
    "fire": "fire_2d",
    "fire2d": "fire_2d",
    "kerple": "kerple_2d",
    "kerple2d": "kerple_2d",
    "decomposed_rel_pos": "decomposed",
    "decomposed_relative": "decomposed",
    "mvitv2": "decomposed",
    "sam": "decomposed",
    "vitdet": "decomposed",
    "directed": "lookhere",
    "look_here": "lookhere",
    "c2p": "deberta",
    "deberta_v2": "deberta",
    "disentangled_attention": "deberta",
    "lie": "liere",
    "lie_rope": "liere",
    "lie_rotations": "liere",
    "transfo_xl": "transformer_xl",
    "xl": "transformer_xl",
    "xlnet": "transformer_xl",
    "body_embedding": "body",
    "body_tokens": "body",
    "part_embedding": "body",
    "body_part": "human_part",
    "human": "human_part",
    "parts": "human_part",
    "person": "human_part",
}
_ENCODINGS: dict[str, type[Encoding]] = {}


def register_encoding(name: str, cls: type[Encoding]) -> None:
    """Makes an encoding class available by name: to `patch_model`, files and `create_encoding`.

    A class may be registered twice under its name, as a notebook cell does that runs again.

    Args:
        name: a lower-case identifier; it becomes part of the keys `<site>.posenc.<name>.*`.
        cls: a subclass of AttentionEncoding or TokenEncoding that implements its abstract
            methods. Its keyword-only arguments are the options. Beside `layout` it may have the
            arguments `num_heads`, `head_dim`, `embed_dim`, `block` and `num_blocks`, see
            `create_encoding`.

    Raises:
        ValueError: the name is taken by another class, is an argument of `patch_model`, or is no
            lower-case identifier.
        TypeError: the class is not derived from AttentionEncoding or TokenEncoding, or is
            abstract.
    """
    _check_class(name, cls)
    check_name(name)
    if name in RESERVED:
        raise ValueError(
            f"register_encoding: {name!r} is an argument of patch_model, choose another name"
        )
    known = _ENCODINGS.get(name)
    if known is not None and _origin(known) != _origin(cls):  # a notebook cell may run twice
        raise ValueError(
            f"register_encoding: {name!r} is taken by {known.__module__}.{known.__qualname__}, "
            "choose another name"
        )
    _ENCODINGS[name] = cls


def _check_class(name: str, cls: Any) -> None:
    if not (isinstance(cls, type) and issubclass(cls, Encoding)):
        raise TypeError(
            f"register_encoding: {name!r} must be a subclass of AttentionEncoding or "
            f"TokenEncoding, got {cls!r}"
        )
    if not issubclass(cls, (AttentionEncoding, TokenEncoding)):
        raise TypeError(
            f"register_encoding: {cls.__name__} must be derived from AttentionEncoding or "
            "TokenEncoding, which say where it acts"
        )
    if inspect.isabstract(cls):
        missing = ", ".join(sorted(cls.__abstractmethods__))
        raise TypeError(
            f"register_encoding: {cls.__name__} is abstract, it must implement {missing}"
        )


def _origin(encoding: type) -> tuple[str, str]:
    return encoding.__module__, encoding.__qualname__


def check_name(name: str) -> None:
    """Raises unless `name` can be a key of the `ModuleDict` that a patched module gets."""
    if not (isinstance(name, str) and name.isidentifier() and name == name.lower()):
        raise ValueError(f"an encoding's name must be a lower-case identifier, got {name!r}")
    if hasattr(nn.ModuleDict, name) or name in ("training", "posenc"):
        raise ValueError(f"an encoding cannot be named {name!r}, torch modules use that name")


for _built_in in (getattr(encodings, name) for name in encodings.__all__):
    if _built_in not in encodings.BASES:
        register_encoding(_built_in.__module__.rpartition(".")[2], _built_in)


def list_encodings(pattern: str = "*") -> list[str]:
    """Registered names that match a shell pattern, sorted.

    >>> list_encodings("s*")
    ['sasa', 'shaw', 'sinusoidal', 'swin']
    """
    return sorted(fnmatch.filter(_ENCODINGS, pattern))


def encoding_class(name: str) -> type[Encoding]:
    """The class of a registered name.

    Raises:
        ValueError: unknown, with what may have been meant.
        TypeError: not a string.
    """
    if not isinstance(name, str):
        raise TypeError(
            f"an encoding's name must be a string, one of {', '.join(_ENCODINGS)}; got {name!r}"
        )
    if name not in _ENCODINGS:
        hint = did_you_mean(meant_encodings(name))
        raise ValueError(f"unknown encoding {name!r}.{hint} There are: {', '.join(_ENCODINGS)}")
    return _ENCODINGS[name]


def meant_encodings(name: str) -> list[str]:
    """Registered names that may have been meant: by another word for them, or mistyped."""
    plain = re.sub(r"[^0-9a-z]+", "_", name.lower()).strip("_")
    if plain in _ENCODINGS:
        return [plain]
    if plain in OTHER_WORDS:
        return [OTHER_WORDS[plain]]
    # The first letter is seldom mistyped; "rope" is near to "irpe" and "rpe" otherwise.
    words = [*_ENCODINGS, *(word for word in OTHER_WORDS if len(word) > 5)]
    near = [word for word in words if word[:1] == plain[:1]]
    close = difflib.get_close_matches(plain, near, n=3, cutoff=0.7)
    return list(dict.fromkeys(OTHER_WORDS.get(known, known) for known in close))


def did_you_mean(names: Iterable[str]) -> str:
    """The hint of a message; empty without names."""
    meant = " or ".join(map(repr, names))
    return f" Did you mean {meant}?" if meant else ""


def registered_name(encoding: type) -> str | None:
    """The name a class is registered under, or None."""
    return next((name for name, known in _ENCODINGS.items() if known is encoding), None)


def option_names(build: Callable[..., Any]) -> list[str]:
    """Options of an encoding's constructor: its keyword-only arguments, placement aside."""
    parameters = inspect.signature(build).parameters.values()
    no_options = ("device", "dtype", *SIZES)
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in no_options]


def resolved_options(build: Callable[..., Any], options: dict[str, Any]) -> dict[str, Any]:
    """The options with the defaults of those that were not given; ranges become tuples."""
    parameters = inspect.signature(build).parameters
    defaults = {name: parameters[name].default for name in option_names(build)}
    given = {k: tuple(v) if isinstance(v, range) else v for k, v in options.items()}
    return {k: v for k, v in defaults.items() if v is not inspect.Parameter.empty} | given


def check_options(build: Callable[..., Any], options: dict[str, Any], name: str) -> None:
    """Raises when the encoding does not have an option, naming close ones and all."""
    known = option_names(build)
    for option in options:
        if option not in known and option not in ("device", "dtype"):
            hint = did_you_mean(difflib.get_close_matches(option, known, n=1))
            raise ValueError(
                f"{name} has no option {option!r}.{hint} Its options: {', '.join(known) or 'none'}"
            )


def create_encoding(
    name: str,
    *,
    layout: TokenLayout,
    num_heads: int | None = None,
    head_dim: int | None = None,
    embed_dim: int | None = None,
    block: int | None = None,
    num_blocks: int | None = None,
    **options: Any,
) -> nn.Module:
    """Builds a registered encoding.

    Args:
        name: one of `list_encodings()`.
        layout: the tokens.
        num_heads: heads of the attention; needed by encodings that act there.
        head_dim: width of a head; needed by some of these.
        embed_dim: width of the tokens; needed by encodings that act on tokens.
        block: where the encoding stands, from 0; for those that differ by depth.
        num_blocks: how many places there are.
        **options: the options of that encoding, and `device`, `dtype`.

    Raises:
        ValueError: an unknown name or option (with close matches), a missing size, or a value
            that the encoding refuses.
        TypeError: the name is no string, or the layout no TokenLayout.

    >>> create_encoding("swin", layout=TokenLayout(2, 3), num_heads=2).table.shape
    torch.Size([2, 15])
    """
    build = encoding_class(name)
    check_layout(layout, name)
    check_options(build, options, name)
    sizes = dict(zip(SIZES, (num_heads, head_dim, embed_dim, block, num_blocks), strict=True))
    return build(layout, **needed_sizes(build, sizes, name), **options)


def needed_sizes(
    build: Callable[..., Any], sizes: dict[str, int | None], name: str
) -> dict[str, int]:
    """Those of the sizes that the constructor takes and that are known.

    Raises:
        ValueError: one without a default is missing.
    """
    for size in required_sizes(build):
        if sizes[size] is None:
            raise ValueError(f"{name} needs {size}=..., which was not given")
    parameters = inspect.signature(build).parameters
    return {n: value for n, value in sizes.items() if n in parameters and value is not None}


def required_sizes(build: Callable[..., Any]) -> list[str]:
    """The sizes that the constructor takes and has no default for."""
    parameters = inspect.signature(build).parameters
    return [
        n for n in SIZES if n in parameters and parameters[n].default is inspect.Parameter.empty
    ]
