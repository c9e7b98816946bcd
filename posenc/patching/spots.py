"""The tokens inside blocks that an encoding can act on: where they are, and how wide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from posenc.encodings.base import TokenEncoding, check_blocks
from posenc.patching.models.examine import AttentionSite, Backbone
from posenc.patching.models.kinds import UnsupportedModelError
from posenc.patching.models.known import mlp_of
from posenc.patching.models.others import OTHER
from posenc.patching.sites.roles import EncodeInput, EncodeOutput


@dataclass(frozen=True)
class Spot:
    """What a module receives or returns, in a model of one grid.

    Args:
        block: index of the block that it is in.
        name: of the module.
        role: whether it is what the module receives, or what it returns.
        width: of the tokens.
        near: a module with parameters, for device and dtype.
    """

    block: int
    name: str
    role: EncodeInput | EncodeOutput
    width: int
    near: nn.Module


def spots_of(backbone: Backbone, encoding: TokenEncoding, name: str) -> list[Spot]:
    """Where an encoding acts in the blocks that it chooses, in their order there.

    Raises:
        ValueError: it chooses a block that is not there.
        UnsupportedModelError: a block has no such place.
    """
    option = "after" if encoding.placement == "block" else "at"
    find = FINDERS[encoding.placement]
    found: list[Spot] = []
    for index in _chosen(backbone, getattr(encoding, option), option, name):
        spots = find(backbone, index, backbone.blocks[index])
        if isinstance(spots, str):
            raise UnsupportedModelError(f"{name}: {spots}. Choose other blocks with {option}=")
        found += spots
    return found


def _chosen(backbone: Backbone, blocks: Any, option: str, name: str) -> list[int]:
    """Indices from 0 of the blocks; None stands for all."""
    count = len(backbone.blocks)
    asked = range(count) if blocks is None else check_blocks(blocks, option, name)
    chosen: list[int] = []
    for index in asked:
        if not -count <= index < count:
            raise ValueError(
                f"{name}: {option}={blocks} names block {index}, but the model has "
                f"{count} blocks (0 to {count - 1})"
            )
        if index % count in chosen:
            raise ValueError(f"{name}: {option}={blocks} names block {index} twice")
        chosen.append(index % count)
    return chosen


# From a backbone and the index and name of a block to the places in it, or to why there are none.
Finder = Callable[[Backbone, int, str], list[Spot] | str]


def _of_block(role: EncodeInput | EncodeOutput) -> Finder:
    def find(backbone: Backbone, index: int, block: str) -> list[Spot]:
        module = backbone.module.get_submodule(block)
        return [Spot(index, block, role, _width(backbone), module)]

    return find


def _mlp_hidden(backbone: Backbone, index: int, block: str) -> list[Spot] | str:
    found = []
    for inner, module in backbone.module.get_submodule(block).named_modules():
        name = ".".join(filter(None, [block, inner]))
        kind = mlp_of(module)
        if kind is not None and not _is_in_attention(backbone, name):
            hidden = f"{name}.{kind.hidden}"
            found.append(Spot(index, hidden, EncodeInput(), kind.width(module), module))
    return found or f"{block} has no MLP whose hidden tokens posenc knows"


def _is_in_attention(backbone: Backbone, name: str) -> bool:
    """Whether it is a part of an attention module, such as the network of a position bias."""
    attention = [*(site.name for site in backbone.attention), *backbone.refused]
    return any(name != each and _is_in(name, each) for each in attention)


def _is_in(name: str, outer: str) -> bool:
    return f"{name}.".startswith(f"{outer}.")


def _width(backbone: Backbone) -> int:
    return int(backbone.module.embed_dim)


FINDERS: dict[str, Finder] = {
    "block": _of_block(EncodeOutput()),
    "block_input": _of_block(EncodeInput()),
    "mlp_hidden": _mlp_hidden,
}


def input_refusal(backbone: Backbone, site: AttentionSite) -> str | None:
    """Why the tokens that an attention module receives cannot be encoded, None when they can."""
    if backbone.family is not OTHER and site.name in backbone.blocks:
        return "one projection of the same tokens makes queries, keys, values and the MLP's input"
    windows = "t" in site.kind.shape.split()
    if site.width is None or windows or site.kind.map == "b c h w":
        return f"what the forward of {type(site.module).__name__} receives is not known"
    whole, own = (source and source.default() for source in (backbone.layout, site.layout))
    return None if own == whole else f"it sees windows of {own}, and the model a grid of {whole}"
