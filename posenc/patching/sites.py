"""Sites: modules whose class was swapped, and what a swapped class does."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from einops import rearrange
from torch import Tensor, nn

from posenc.attention import attend
from posenc.encodings.base import AttentionEncoding, Encoding, TokenEncoding
from posenc.intercept import generate_class, rebuild_with, rewritten_forward
from posenc.layout import TokenLayout, check_is_fixed
from posenc.patching import huggingface, multihead
from posenc.patching.families import SeenGrid
from posenc.patching.hide import hidden_table, with_hidden_table
from posenc.patching.layouts import GivenLayout, LayoutSource, SeenLayout
from posenc.patching.optimizer import group_matcher, no_weight_decay
from posenc.terms import Term

# What a site does, in the order in which it is done around its forward:
#   ("root",)                  tells optimizers about the encodings
#   ("hide", table, *methods)  hides its absolute table in these methods
#   ("bind",)                  remembers the layout for a replay of its forward
#   ("first",)                 encodes the tokens that its forward receives
#   ("map", pattern)           takes the layout from the map that its forward receives
#   ("attention", *adapter)    replaces the attention calls in its forward, or by an adapter
#   ("see",)                   notes the layout of the image that its forward received
#   ("position", method)       encodes the tokens that this method returns
#   ("block",)                 encodes the tokens that its forward returns
Role = tuple[str, ...]


# What an observer of a site receives at each attention call: query, key, value, terms, layout
# (batch, heads, tokens, width), and by name the mask, is_causal, scale and enable_gqa of the call.
Observer = Callable[..., None]


class Adapter(Protocol):
    """Replaces the attention of modules whose forward holds no call that could be replaced."""

    def refusal(self, module: Any) -> str | None:
        """Why it does not fit a module, None when it does."""
        ...

    def members(self) -> dict[str, Any]:
        """Of the generated class, which also has `_attend`."""
        ...


ADAPTERS: dict[str, Adapter] = {"huggingface": huggingface, "multihead": multihead}


@dataclass
class Site:
    """What a patched module needs besides its own state; kept as its attribute `_posenc`.

    Args:
        name: of the module in the model, for messages.
        layout: tells the layout at run time.
        backend: of `posenc.attend`.
        shape: einops pattern of query, key and value at the attention call.
        num_heads: of the attention.
        head_dim: width of its queries and keys.
        value_dim: width of its values.
        seen_grid: of an embedding.
        attention: names of the encodings that act inside attention.
        positions: names of the encodings that act at the model's own position step.
        tokens: names of the encodings that act on the result of its forward.
        shared: encodings that are registered elsewhere (`share=True`).
        roles: what the module does; without any its class is its own.
        fused_attn: the module's flag before it was switched on, None where it has none.
        observers: are told what each attention call computes; copies and files have none.
    """

    name: str
    layout: LayoutSource
    backend: str
    shape: str = "b h n d"
    num_heads: int = 0
    head_dim: int = 0
    value_dim: int = 0
    seen_grid: SeenGrid | None = None
    attention: list[str] = field(default_factory=list)
    positions: list[str] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    shared: dict[str, Encoding] = field(default_factory=dict)
    roles: tuple[Role, ...] = ()
    fused_attn: bool | None = None
    observers: tuple[Observer, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        """What pickle and copies see: without observers."""
        return {name: value for name, value in vars(self).items() if name != "observers"}

    def encodings(self, module: Any, names: list[str]) -> list[Any]:
        """The encodings of these names, in order."""
        own = module._modules.get("posenc")
        return [self.shared[n] if n in self.shared else own._modules[n] for n in names]


@functools.cache
def site_class(original: Any, roles: tuple[Role, ...]) -> type[nn.Module]:
    """The generated subclass of `original` for these roles.

    Raises:
        CannotRewrite: a method that must be rewritten cannot be.
    """
    members: dict[str, Any] = {"_posenc_recipe": rebuild_with(site_class, original, roles)}
    arguments = {role[0]: role[1:] for role in roles}

    def wrap(method: str, wrapper: Callable[[Any], Any]) -> None:
        members[method] = wrapper(members.get(method, getattr(original, method, None)))

    if "hide" in arguments:
        table, *methods = arguments["hide"]
        members["_posenc_hidden_table"] = hidden_table
        members.update({m: with_hidden_table(original, m, table) for m in methods})
    if "attention" in arguments:
        members.update(_attention_members(original, *arguments["attention"]))
    if "map" in arguments:
        wrap("forward", functools.partial(_see_map_first, pattern=arguments["map"][0]))
    if "first" in arguments:
        wrap("forward", _encode_first)
    if "bind" in arguments:
        members["__call__"] = _not_compiled(_bind_and_call)
    if "see" in arguments:
        wrap("forward", _then_see)
    if "position" in arguments:
        wrap(arguments["position"][0], functools.partial(_then_encode, names="positions"))
    if "block" in arguments:
        wrap("forward", functools.partial(_then_encode, names="tokens"))
    if "root" in arguments:
        wrap("no_weight_decay", no_weight_decay)
        wrap("group_matcher", group_matcher)
    generated = generate_class(original, {n: m for n, m in members.items() if m is not None})
    _leave_out_of_fx(generated)
    return generated


def _attention_members(original: Any, adapter: str | None = None) -> dict[str, Any]:
    if adapter is not None:
        return {"_attend": _attend, **ADAPTERS[adapter].members()}
    forward = rewritten_forward(original)
    return {"forward": forward, "_attend": _attend, "_no_attention_ran": _no_attention_ran}


def _leave_out_of_fx(generated: type[nn.Module]) -> None:
    # timm's fx feature extraction keeps such modules as leaves: their forward checks layouts.
    from timm.layers import register_notrace_module

    if "forward" in vars(generated):
        register_notrace_module(generated)


def _attend(
    self: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Takes the place of `F.scaled_dot_product_attention` in the module's forward."""
    site: Site = self._posenc
    own_shape = query.shape
    if site.shape != "b h n d":
        query, key, value = (_heads_second(site, x) for x in (query, key, value))
        attn_mask = _mask_heads_second(site, attn_mask)
    layout = _checked_layout(site, query.shape[-2])
    terms: list[Term] = []
    for encoding in site.encodings(self, site.attention):
        terms.extend(encoding(query, key, layout, scale=scale))
    for observe in site.observers:
        observe(
            query,
            key,
            value,
            terms,
            layout,
            attn_mask=attn_mask,
            is_causal=is_causal,
            scale=scale,
            enable_gqa=enable_gqa,
        )
    result = attend(
        query,
        key,
        value,
        terms,
        attn_mask=attn_mask,
        dropout_p=dropout_p,
        is_causal=is_causal,
        scale=scale,
        enable_gqa=enable_gqa,
        backend=site.backend,
    )
    return result if site.shape == "b h n d" else _as_it_was(site, result, own_shape)


# Other shapes than [batch, heads, tokens, width], and what they become: windows join the batch.
FOLDED = {
    "(b h) n d": "b h n d",
    "b h t n d": "(b t) h n d",
    "b t h n d": "(b t) h n d",
}


def _heads_second(site: Site, x: Tensor) -> Tensor:
    return rearrange(x, f"{site.shape} -> {FOLDED[site.shape]}", h=site.num_heads)


def _mask_heads_second(site: Site, mask: Tensor | None) -> Tensor | None:
    if mask is None or mask.dim() == 2:
        return mask
    if site.shape != "(b h) n d" or mask.dim() != 3:
        raise ValueError(
            f"posenc: {site.name} has attention of shape [{site.shape}] with a mask "
            f"{list(mask.shape)}, which is not known how to fold"
        )
    return _heads_second(site, mask)


def _as_it_was(site: Site, x: Tensor, own_shape: Any) -> Tensor:
    names = site.shape.replace("(", "").replace(")", "").split()
    windows = {"t": own_shape[names.index("t")]} if "t" in names else {}
    return rearrange(x, f"{FOLDED[site.shape]} -> {site.shape}", **windows)


def _no_attention_ran(self: Any) -> None:
    raise RuntimeError(
        f"posenc: {self._posenc.name} ran without the attention call that was replaced, so its "
        f"encodings had no effect (fused_attn={getattr(self, 'fused_attn', None)}); set "
        "fused_attn = True on the module, or call posenc.unpatch_model(model)"
    )


def _then_encode(method: Callable[..., Any], names: str) -> Callable[..., Any]:
    """`method`, then token encodings of the site on what it returns."""

    @functools.wraps(method)
    def encoded(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = method(self, *args, **kwargs)
        if isinstance(result, tuple):  # the tokens, and what goes with them
            return (_encode(self, result[0], names), *result[1:])
        return _encode(self, result, names)

    return encoded


def _encode_first(method: Callable[..., Any]) -> Callable[..., Any]:
    """The position encodings of the site on the first argument, then `method`."""

    @functools.wraps(method)
    def encoded(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return method(self, _encode(self, x, "positions"), *args, **kwargs)

    return encoded


def _encode(self: Any, x: Tensor, names: str) -> Tensor:
    site: Site = self._posenc
    tokens = x.flatten(1, -2)  # [B, height, width, C] in some models
    layout = _checked_layout(site, tokens.shape[1])
    for encoding in site.encodings(self, getattr(site, names)):
        tokens = encoding(tokens, layout)
    # Not a view where none is needed: FSDP warns of blocks that return one.
    return tokens if x.dim() == 3 else tokens.reshape(x.shape)


def _bind_and_call(self: Any, *args: Any, **kwargs: Any) -> Any:
    """`__call__` of a block: binds the layout to the tokens, its first argument.

    Not in forward: that may be compiled, and compiled code does not run again as Python.
    """
    if not torch.compiler.is_compiling():
        source: SeenLayout = self._posenc.layout
        source.bind(args[0] if args else next(iter(kwargs.values())))
    return nn.Module.__call__(self, *args, **kwargs)


def _not_compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, whose own frame torch.compile runs as it is; what it calls may be compiled."""
    from torch._dynamo.eval_frame import skip_code  # slow to import

    skip_code(function.__code__)
    return function


def _see_map_first(method: Callable[..., Any], pattern: str) -> Callable[..., Any]:
    """Notes the sides of the map that forward receives, then `method`."""

    @functools.wraps(method)
    def seeing(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if pattern == "size":
            height, width = args[0] if args else kwargs["size"]
        else:
            axis = pattern.split().index("h")
            height, width = x.shape[axis : axis + 2]
        self._posenc.layout.see(height, width)
        return method(self, x, *args, **kwargs)

    return seeing


def _then_see(method: Callable[..., Any]) -> Callable[..., Any]:
    """`method` of an embedding, then notes the layout of what it saw."""

    @functools.wraps(method)
    def seeing(self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        _check_sides_are_fixed(self, x)
        result = method(self, x, *args, **kwargs)
        site: Any = self._posenc
        site.layout.see(*site.seen_grid(self, x, result))
        return result

    return seeing


def _check_sides_are_fixed(self: Any, x: Any) -> None:
    """Raises when an export leaves the sides of the image open."""
    # Before the embedding runs: Dynamo fixes a side without a word that timm prints in a message,
    # and the ONNX exporter then takes that for what the user wanted.
    if isinstance(x, Tensor):
        check_is_fixed(f"posenc: the input of {self._posenc.name}", x.shape[1:])


def _checked_layout(site: Site, tokens: int) -> TokenLayout:
    layout = site.layout.current(tokens)
    if tokens != layout.num_tokens:
        change = (
            "pass patch_model the layout= of these tokens"
            if isinstance(site.layout, GivenLayout)
            else "change the input size by model.set_input_size(...)"
        )
        raise RuntimeError(
            f"posenc: {site.name} got {tokens} tokens, but its layout {layout} has "
            f"{layout.num_tokens}, so positions are not known; switch off what drops or merges "
            f"tokens (patch_drop_rate), and {change}"
        )
    return layout


def acts_on(encoding: Encoding) -> str:
    """Kind of an encoding: "attention", or the placement of a token encoding.

    Raises:
        TypeError: neither.
    """
    if isinstance(encoding, AttentionEncoding):
        return "attention"
    if isinstance(encoding, TokenEncoding):
        return encoding.placement
    raise TypeError(
        "an encoding must be a posenc.AttentionEncoding or posenc.TokenEncoding, got "
        f"{type(encoding).__name__}"
    )
