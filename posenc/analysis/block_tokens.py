"""The tokens that blocks put out."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from posenc.analysis.checks import check_images
from posenc.layout import TokenLayout
from posenc.patching.models.examine import Backbone
from posenc.patching.observe import follow_layout
from posenc.patching.select import Blocks, choose


@dataclass(frozen=True, eq=False)
class BlockTokens:
    """What blocks put out.

    Args:
        tokens: name of a block -> `[B, N, C]`, without graph.
        layout: of these tokens.
    """

    tokens: dict[str, Tensor] = field(repr=False)
    layout: TokenLayout


def block_tokens(
    model: nn.Module,
    images: Tensor,
    *,
    blocks: Blocks = None,
    layout: TokenLayout | None = None,
    batch_size: int = 8,
) -> BlockTokens:
    """Runs a model and keeps the tokens that its blocks put out, residual stream included.

    Args:
        model: in eval mode, with one grid for all blocks (no pyramid); patched or not.
        images: `[B, 3, H, W]`.
        blocks: indices of blocks, a slice or a predicate on their names; default: all.
        layout: as for `patch_model`.
        batch_size: images in one forward.

    Raises:
        ValueError: a model in training mode, one that is not known, whose stages have grids of
            their own or whose blocks put out no `[B, N, C]`; or blocks that select nothing.
        TypeError: images that are no floating point tensor.

    >>> import timm
    >>> vit = timm.create_model("vit_tiny_patch16_224", img_size=(32, 48), depth=2).eval()
    >>> kept = block_tokens(vit, torch.zeros(2, 3, 32, 48), blocks=-1)
    >>> {name: tuple(tokens.shape) for name, tokens in kept.tokens.items()}, str(kept.layout)
    ({'blocks.1': (2, 7, 192)}, '2x3 + 1 prefix')
    """
    check_images(model, images, batch_size, "block_tokens")
    with follow_layout(model, layout, "block_tokens") as (backbone, source):
        names = _block_names(backbone)
        chosen = choose(names, blocks)
        if not chosen:
            raise ValueError(
                f"block_tokens: blocks={blocks!r} selects none of the {len(names)} blocks"
            )
        modules = {name: backbone.module.get_submodule(name) for name in chosen}
        kept: dict[str, list[Tensor]] = {name: [] for name in chosen}
        with torch.no_grad(), contextlib.ExitStack() as stack:
            for name, module in modules.items():
                stack.enter_context(_keeping(module, kept[name]))
            for chunk in images.split(batch_size):
                model(chunk)
        seen = source.latest()
    for name, parts in kept.items():
        _check_tokens(name, parts, seen)
    prefix = f"{backbone.name}." if backbone.name else ""
    return BlockTokens({prefix + name: torch.cat(parts) for name, parts in kept.items()}, seen)


def _block_names(backbone: Backbone) -> list[str]:
    """Blocks in order; outside timm what counts them in the names of attention modules."""
    if backbone.family.blocks:
        return backbone.blocks
    found = (re.match(r".*\d(?=\.)", site.name) for site in backbone.attention)
    return list(dict.fromkeys(match[0] for match in found if match))


@contextlib.contextmanager
def _keeping(module: nn.Module, kept: list[Any]) -> Iterator[None]:
    def keep(module: nn.Module, args: Any, result: Any) -> None:
        kept.append(result[0] if isinstance(result, tuple) else result)

    handle = module.register_forward_hook(keep)
    try:
        yield
    finally:
        handle.remove()


def _check_tokens(name: str, parts: list[Any], layout: TokenLayout) -> None:
    for part in parts:
        shape = list(part.shape) if isinstance(part, Tensor) else type(part).__name__
        if not isinstance(part, Tensor) or part.dim() != 3 or part.shape[1] != layout.num_tokens:
            raise ValueError(
                f"block_tokens: {name} puts out {shape}, not [B, {layout.num_tokens}, C], the "
                f"tokens of {layout}; select other blocks with blocks="
            )
    if not parts:
        raise ValueError(f"block_tokens: {name} did not run")
