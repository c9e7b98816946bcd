"""Attention classes of users, made known by one call."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from posenc.intercept import CannotRewrite, rewritten_forward
from posenc.patching.models.kinds import MAPS, AttentionKind
from posenc.patching.models.others import ADAPTED
from posenc.patching.models.timm import ATTENTIONS
from posenc.patching.sites.attention import FOLDED

AttentionClass = TypeVar("AttentionClass", bound=type[nn.Module])
Size = str | Callable[[Any], int]

# By the class itself, not by its path: a notebook's cell makes another class each time it runs,
# and models of the older class are still there.
_REGISTERED: dict[type, AttentionKind] = {}


def register_attention(
    cls: AttentionClass,
    *,
    shape: str = "b h n d",
    map: str | None = None,
    num_heads: Size = "num_heads",
    head_dim: Size = "head_dim",
    value_dim: Size | None = None,
) -> AttentionClass:
    """Makes an attention class of your own known, so that `patch_model` finds it in any model.

    The forward of the class must compute self-attention and call
    `torch.nn.functional.scaled_dot_product_attention` itself. Models that posenc does not know
    need `layout=`; in a model of timm the class may stand where timm's attention stood. Subclasses
    are known too. Sizes are read from each module when a model is patched. Registering a class
    again replaces what was said before.

    Args:
        cls: the class, wherever it was defined.
        shape: of query, key and value at the call: "b h n d" (batch, heads, tokens, width),
            "(b h) n d", "b h t n d" or "b t h n d" (t windows).
        map: "b h w c" or "b c h w" where forward receives a map of the tokens rather than a
            sequence, "size" where it receives (tokens, (height, width)): each map then tells its
            layout, which has no prefix tokens.
        num_heads: name of an attribute ("attn.heads" is one of a submodule), or a function of the
            module.
        head_dim: width of the queries and keys of one head, in the same way.
        value_dim: width of the values of one head; default: head_dim.

    Raises:
        TypeError: not a subclass of torch.nn.Module, or a size that is neither a name nor a
            function.
        ValueError: posenc knows the class already, its forward has no call that can be replaced
            (with the reason), or an unknown shape or map.

    Returns:
        The class, so that this is a decorator too.

    >>> import posenc, torch
    >>> from timm.models.fastvit import Attention  # any class that calls SDPA
    >>> class OwnAttention(Attention): ...
    >>> posenc.register_attention(OwnAttention, map="b c h w").__name__
    'OwnAttention'
    >>> model = torch.nn.Sequential(OwnAttention(64), OwnAttention(64))
    >>> model = posenc.patch_model(model, "swin", layout=posenc.TokenLayout(2, 3))
    >>> list(posenc.patched_encodings(model))
    ['0.swin', '1.swin']
    """
    _check_class(cls)
    shapes = ("b h n d", *FOLDED)
    if shape not in shapes:
        raise ValueError(f"register_attention: shape must be one of {shapes}, got {shape!r}")
    if map not in (None, *MAPS):
        raise ValueError(f"register_attention: map must be None or one of {MAPS}, got {map!r}")
    _REGISTERED[cls] = AttentionKind(
        _path(cls),
        shape,
        map,
        num_heads=_reader("num_heads", num_heads),
        head_dim=_reader("head_dim", head_dim),
        value_dim=None if value_dim is None else _reader("value_dim", value_dim),
    )
    return cls


def registered_attention(cls: type) -> AttentionKind | None:
    """What was registered for exactly this class."""
    return _REGISTERED.get(cls)


def _check_class(cls: Any) -> None:
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise TypeError(
            f"register_attention: expected a class derived from torch.nn.Module, got {cls!r}"
        )
    if _path(cls) in {kind.path for kind in (*ADAPTED, *ATTENTIONS)}:
        raise ValueError(
            f"register_attention: posenc knows {_path(cls)} already; patch_model(model, "
            "layout=...) finds it in any model"
        )
    original: Any = cls
    try:
        rewritten_forward(original)
    except CannotRewrite as reason:
        raise ValueError(
            f"register_attention: {cls.__name__} cannot be patched: {reason}. Its forward must "
            "call torch.nn.functional.scaled_dot_product_attention, or can call "
            "posenc.attend(q, k, v, terms) itself"
        ) from None


def _path(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _reader(option: str, size: Size) -> Callable[[Any], int]:
    if isinstance(size, str):
        return operator.attrgetter(size)
    if not callable(size):
        raise TypeError(
            f"register_attention: {option} must be the name of an attribute or a function of the "
            f"module, got {size!r}"
        )
    return size
