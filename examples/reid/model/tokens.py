"""The tokens of a ViT of timm, with something added to its positions, and before its last block."""

from __future__ import annotations

from typing import Any

from timm.models import VisionTransformer
from torch import Tensor


def check_is_plain(vit: Any, what: str) -> None:
    """Raises `ValueError` for a model whose steps have other names."""
    if not isinstance(vit, VisionTransformer):
        raise ValueError(
            f"{what} needs a plain vision transformer of timm, and this is a {type(vit).__name__}"
        )


def forward_tokens(vit: Any, images: Tensor, added: Tensor | None) -> tuple[Tensor, Tensor]:
    """Tokens `[B, tokens, width]` after all blocks, and those before the last one.

    `added` `[B, 1, width]` goes to every token, prefix tokens too, where positions do.
    """
    seen = []
    hooks = [vit.blocks[-1].register_forward_pre_hook(lambda _, args: seen.append(args[0]))]
    if added is not None:  # what comes after the positions
        hook = vit.patch_drop.register_forward_pre_hook(lambda _, args: (args[0] + added,))
        hooks.append(hook)
    try:
        return vit.forward_features(images), seen[0]
    finally:
        for hook in hooks:
            hook.remove()
