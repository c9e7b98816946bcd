"""The layout of a timm model at run time, learned without any token count."""

from __future__ import annotations

from typing import Any, Protocol

from torch import nn

from posenc.layout import TokenLayout


class LayoutSource(Protocol):
    """Tells a site the layout of the tokens that it is about to see."""

    def current(self) -> TokenLayout:
        """The layout now."""
        ...


class GivenLayout:
    """The layout that the user passed."""

    def __init__(self, layout: TokenLayout) -> None:
        self.layout = layout

    def current(self) -> TokenLayout:
        """Always the same."""
        return self.layout


class EmbeddingLayout:
    """The grid of the backbone's patch embedding, read at each call.

    So timm's `set_input_size` on a patched model is followed, and another embedding too.
    """

    def __init__(self, backbone: nn.Module) -> None:
        self.backbone: Any = backbone

    def current(self) -> TokenLayout:
        """The grid of the embedding, after the prefix tokens."""
        grid = self.backbone.patch_embed.grid_size
        return TokenLayout(grid[0], grid[1], self.backbone.num_prefix_tokens)
