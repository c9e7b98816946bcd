"""The words in which models are described: a row of data for a class of models or attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from posenc.layout import TokenLayout
from posenc.patching.layouts import LayoutSource, SeenGrid, StageReader, grid_of_embedding

# How a forward may receive a map of tokens: the axes of its first argument, or sides beside it.
MAPS = ("b h w c", "b c h w", "size")


class UnsupportedModelError(ValueError):
    """A model or module that posenc refuses, with the reason and what to do."""


@dataclass(frozen=True)
class AttentionKind:
    """A class whose forward computes self-attention by calls that can be replaced.

    Args:
        path: "module:Class".
        shape: of query, key and value at the call, as an einops pattern.
        map: "b h w c" or "b c h w" where forward receives a map of the tokens that attend to
            each other, "size" where it receives (tokens, (height, width)): these sides are then
            the layout, whatever the image.
        map_of: name of the submodule whose forward receives that map; "" is the module itself.
        num_heads: of a module.
        head_dim: of a module.
        value_dim: of a module, default head_dim.
        adapter: what replaces the attention where its calls cannot be: a key of
            `posenc.patching.sites.classes.ADAPTERS`.
        width: of the tokens `[B, N, width]` that forward receives and makes queries, keys and
            values of, from a module; None where nothing tells but the model.
    """

    path: str
    shape: str = "b h n d"
    map: str | None = None
    map_of: str = ""
    num_heads: Callable[[Any], int] = lambda module: module.num_heads
    head_dim: Callable[[Any], int] = lambda module: module.head_dim
    value_dim: Callable[[Any], int] | None = None
    adapter: str | None = None
    width: Callable[[Any], int] | None = None


@dataclass(frozen=True)
class MlpKind:
    """A class whose forward computes an MLP, with hidden tokens that an encoding can act on.

    Args:
        path: "module:Class"; subclasses with a forward of their own are not meant.
        hidden: name of the submodule that receives the hidden tokens, after activation and gate.
        width: of the hidden tokens, from a module.
    """

    path: str
    hidden: str = "drop1"
    width: Callable[[Any], int] = lambda module: module.fc2.in_features


@dataclass(frozen=True)
class PositionStep:
    """Where the model adds positions to its tokens; `None` stands for the first block's input.

    Args:
        module: name in the backbone.
        method: that returns the tokens, positions added.
        before: whether instead the module's forward receives the tokens.
    """

    module: str = ""
    method: str = "_pos_embed"
    before: bool = False


@dataclass(frozen=True)
class AbsoluteTable:
    """An absolute position table that can be hidden.

    Args:
        module: its name in the backbone.
        methods: of the module, that add the table.
        name: of the parameter.
    """

    module: str = ""
    methods: tuple[str, ...] = ("_pos_embed",)
    name: str = "pos_embed"


# From a backbone, a name in it and the module to its layout; None stands for the layout of the
# whole model, words for the reason why the module is left alone.
SiteLayout = Callable[[Any, str, Any], LayoutSource | str | None]


@dataclass(frozen=True)
class Family:
    """A class of models.

    Args:
        path: "module:Class".
        embedding: name of the patch embedding whose grid all blocks see; None where stages or
            windows have grids of their own.
        step: where positions are added.
        table: the absolute position table.
        seen_grid: tells the grid that the embedding saw.
        blocks: what the names of attention modules start with.
        stage: reads the grid of the stage in which an attention module stands, where stages
            have grids of their own.
        site_layout: tells what an attention module sees in another way.
    """

    path: str
    embedding: str | None = "patch_embed"
    step: PositionStep | None = PositionStep()
    table: AbsoluteTable | None = AbsoluteTable()
    seen_grid: SeenGrid = grid_of_embedding
    blocks: str = "blocks."
    stage: StageReader | None = None
    site_layout: SiteLayout = lambda backbone, name, module: None


@dataclass(frozen=True)
class ImageEmbedding:
    """A class outside timm that turns images into the tokens of all attention beside it.

    Args:
        path: "module:Class".
        layout: of the image size that the model's config states, from a module of this class.
        seen_grid: tells the grid of an image that it saw.
    """

    path: str
    layout: Callable[[Any], TokenLayout]
    seen_grid: SeenGrid
