"""The class of a patched module: generated from its own class and its roles."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol

from torch import nn

from posenc._torch import run_uncompiled
from posenc.intercept import generate_class, rebuild_with, rewritten_forward
from posenc.patching.sites import cosine_windows, huggingface, multihead
from posenc.patching.sites.attention import attend_with_encodings, no_attention_ran
from posenc.patching.sites.hide import hidden_table, with_hidden_table
from posenc.patching.sites.optimizer import group_matcher, no_weight_decay
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
)
from posenc.patching.sites.tokens import (
    bind_and_call,
    encode_first,
    see_map_first,
    then_encode,
    then_see,
)


class Adapter(Protocol):
    """Replaces the attention of modules whose forward holds no call that could be replaced."""

    def refusal(self, module: Any) -> str | None:
        """Why it does not fit a module, None when it does."""
        ...

    def members(self) -> dict[str, Any]:
        """Of the generated class, which also has `_attend`."""
        ...


ADAPTERS: dict[str, Adapter] = {
    "huggingface": huggingface,
    "multihead": multihead,
    "swin_v2": cosine_windows.SWIN_V2,
    "swin_v2_cr": cosine_windows.SWIN_V2_CR,
}


@functools.cache
def site_class(original: Any, roles: tuple[Role, ...]) -> type[nn.Module]:
    """The generated subclass of `original` for these roles, which are in order.

    Raises:
        CannotRewrite: a method that must be rewritten cannot be.
    """
    members: dict[str, Any] = {"_posenc_recipe": rebuild_with(site_class, original, roles)}
    for role in roles:
        members.update(_members(original, role, members))
    generated = generate_class(original, members)
    _leave_out_of_fx(generated)
    return generated


def _members(original: Any, role: Role, members: dict[str, Any]) -> dict[str, Any]:
    """What a role adds to the class, around what is there already."""

    def wrapped(method: str, wrapper: Callable[[Any], Any]) -> dict[str, Any]:
        new = wrapper(members.get(method, getattr(original, method, None)))
        return {} if new is None else {method: new}

    match role:
        case Root():
            return {
                **wrapped("no_weight_decay", no_weight_decay),
                **wrapped("group_matcher", group_matcher),
            }
        case HideTable(table, methods):
            hidden = {m: with_hidden_table(original, m, table) for m in methods}
            return {"_posenc_hidden_table": hidden_table, **hidden}
        case ReplaceAttention(adapter):
            return _attention_members(original, adapter)
        case SeeMap(pattern):
            return wrapped("forward", functools.partial(see_map_first, pattern=pattern))
        case EncodeInput():
            return wrapped("forward", encode_first)
        case BindLayout():
            return {"__call__": run_uncompiled(bind_and_call)}
        case SeeImage():
            return wrapped("forward", then_see)
        case EncodePositions(method):
            return wrapped(method, functools.partial(then_encode, names="positions"))
        case EncodeOutput():
            return wrapped("forward", functools.partial(then_encode, names="tokens"))


def _attention_members(original: Any, adapter: str | None) -> dict[str, Any]:
    if adapter is not None:
        return {"_attend": attend_with_encodings, **ADAPTERS[adapter].members()}
    return {
        "forward": rewritten_forward(original),
        "_attend": attend_with_encodings,
        "_no_attention_ran": no_attention_ran,
    }


def _leave_out_of_fx(generated: type[nn.Module]) -> None:
    # timm's fx feature extraction keeps such modules as leaves: their forward checks layouts.
    from timm.layers import register_notrace_module

    if "forward" in vars(generated):
        register_notrace_module(generated)
