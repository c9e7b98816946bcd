"""What a patched module carries: its layout, its encodings and what it does with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from posenc.attention.call import AttentionCall
from posenc.encodings.base import AttentionEncoding, Encoding, TokenEncoding
from posenc.layout import TokenLayout
from posenc.patching.layouts import GivenLayout, LayoutSource, SeenGrid
from posenc.patching.sites.roles import Role


class Observer(Protocol):
    """Is told what a site computes."""

    def start(self) -> None:
        """A forward of the module begins."""
        ...

    def __call__(self, call: AttentionCall, layout: TokenLayout) -> None:
        """An attention call, checked, with its tokens' layout."""
        ...


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
        inputs: names of the encodings that act on what its forward receives.
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
    inputs: list[str] = field(default_factory=list)
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

    def checked_layout(self, tokens: int) -> TokenLayout:
        """The layout of a call with so many tokens.

        Raises:
            RuntimeError: the layout has another number of tokens.
        """
        layout = self.layout.for_call(tokens)
        if tokens != layout.num_tokens:
            change = (
                "pass patch_model the layout= of these tokens"
                if isinstance(self.layout, GivenLayout)
                else "change the input size by model.set_input_size(...)"
            )
            raise RuntimeError(
                f"posenc: {self.name} got {tokens} tokens, but its layout {layout} has "
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
