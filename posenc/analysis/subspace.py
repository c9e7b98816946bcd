"""The directions in which tokens say where they are."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from posenc.analysis.block_tokens import block_tokens
from posenc.analysis.checks import check_floating, check_images
from posenc.analysis.crops import crops_of
from posenc.functional.precision import at_least_float32
from posenc.layout import TokenLayout


@dataclass(frozen=True, eq=False)
class PositionSubspace:
    """Directions of tokens that follow from the place alone.

    Args:
        basis: `[rank, C]`, orthonormal rows, the strongest direction first.
        strength: `[rank]`, the variance of position along each, over places; estimates are
            unbiased, so that a direction without any may have a negative one.
        layout: of the tokens that it was found in.
        block: name of the block that put them out.
        approximate: whether it is of crops of one image.
    """

    basis: Tensor = field(repr=False)
    strength: Tensor
    layout: TokenLayout
    block: str
    approximate: bool


def position_subspace(
    model: nn.Module,
    images: Tensor,
    rank: int,
    *,
    block: int = -1,
    layout: TokenLayout | None = None,
    batch_size: int = 8,
) -> PositionSubspace:
    """The principal directions of the mean over images of the tokens at each place.

    With `x_b,i` the token of image b at place i minus the image's mean over places,
    `M = mean over images a != b of x_a^T x_b / n` is an unbiased estimate of the covariance over
    places of what the place tells (with a = b, content would count as position). The subspace is
    that of its `rank` largest eigenvalues. Prefix tokens are left out.

    Args:
        model: in eval mode, with one grid for all blocks; patched or not.
        images: `[B, 3, H, W]`, 30 and more are better than few. One image is replaced by 30
            crops of it (`posenc.analysis.crops_of`), and the result says `approximate`.
        rank: number of directions; at most C and one less than the number of patches.
        block: whose output is read; -1 is the last.
        layout: as for `patch_model`.
        batch_size: images in one forward.

    Raises:
        ValueError: a rank out of its range, or as `block_tokens`.
        TypeError: images that are no floating point tensor, a rank or block that is no integer.

    Reference: INSID3 (CVPR 2026, github.com/visinf/INSID3) removes such a subspace from the
    tokens of DINOv3 before it matches keypoints.

    >>> import timm
    >>> vit = timm.create_model("vit_tiny_patch16_224", img_size=(32, 48), depth=2).eval()
    >>> subspace = position_subspace(vit, torch.randn(8, 3, 32, 48), rank=2)
    >>> subspace.basis.shape, subspace.block
    (torch.Size([2, 192]), 'blocks.1')
    """
    check_images(model, images, batch_size, "position_subspace")
    rank, block = (_integer(each, name) for each, name in ((rank, "rank"), (block, "block")))
    pictures = crops_of(images) if len(images) == 1 else images
    kept = block_tokens(model, pictures, blocks=[block], layout=layout, batch_size=batch_size)
    ((name, tokens),) = kept.tokens.items()
    most = min(tokens.shape[-1], kept.layout.num_grid - 1)
    if not 1 <= rank <= most:
        raise ValueError(
            f"position_subspace: rank must be 1 to {most} for {kept.layout.num_grid} patches of "
            f"width {tokens.shape[-1]}, got {rank}"
        )
    strength, basis = _directions(tokens[:, kept.layout.prefix :], rank)
    return PositionSubspace(basis, strength, kept.layout, name, approximate=len(images) == 1)


def debias(tokens: Tensor, subspace: PositionSubspace) -> Tensor:
    """Tokens without the directions of a position subspace: `x - U^T U x` with U the basis.

    Prefix tokens pass unchanged: their number is that of the subspace's layout, the grid may be
    another one.

    Args:
        tokens: `[B, N, C]`, prefix tokens first.
        subspace: what `position_subspace` returned.

    Raises:
        ValueError: a shape that does not fit the subspace.
        TypeError: no floating point tensor, or no subspace.

    Returns:
        A new tensor of the same shape and dtype, computed in at least float32.
    """
    _check_debias(tokens, subspace)
    prefix = subspace.layout.prefix
    dtype = at_least_float32(tokens.dtype)
    basis = subspace.basis.to(tokens.device, dtype)
    patches = tokens[:, prefix:].to(dtype)
    cleared = patches - (patches @ basis.T) @ basis
    return torch.cat([tokens[:, :prefix], cleared.to(tokens.dtype)], dim=1)


def _directions(patches: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues of the covariance of position, and their directions as rows."""
    centered = patches.to(at_least_float32(patches.dtype))
    centered = centered - centered.mean(dim=1, keepdim=True)
    together = centered.sum(dim=0)
    rows = centered.flatten(0, 1)
    count, places = centered.shape[:2]
    # The sum over all pairs of images minus that over equal ones.
    covariance = (together.T @ together - rows.T @ rows) / (count * (count - 1) * places)
    values, vectors = torch.linalg.eigh(covariance)
    return values[-rank:].flip(0), vectors[:, -rank:].flip(1).T.contiguous()


def _integer(given: Any, name: str) -> int:
    if isinstance(given, bool) or not hasattr(given, "__index__"):
        raise TypeError(f"position_subspace: {name} must be an integer, got {given!r}")
    return operator.index(given)


def _check_debias(tokens: Any, subspace: Any) -> None:
    if not isinstance(subspace, PositionSubspace):
        raise TypeError(
            "debias: subspace must be what position_subspace returned, got "
            f"{type(subspace).__name__}"
        )
    check_floating(tokens, "debias: tokens")
    prefix, width = subspace.layout.prefix, subspace.basis.shape[-1]
    if tokens.dim() != 3 or tokens.shape[-1] != width or tokens.shape[1] <= prefix:
        raise ValueError(
            f"debias: tokens must be [B, N, {width}] with more than {prefix} tokens for this "
            f"subspace, got {list(tokens.shape)}"
        )
