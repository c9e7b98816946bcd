"""The jigsaw patch module: parts of the image that are spread over all of it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


def jigsaw_order(num_patches: int, shift: int, groups: int) -> Tensor:
    """The order in which patches are dealt to the parts, as indices from 0.

    The first `shift` patches move to the end. The row is then cut into `groups` pieces, of which
    one patch after the other is taken in turn:

        out[k * groups + g] = row[g * (length / groups) + k]

    Where the pieces would be of unequal length, the last patch but one of the row is repeated.

    Raises:
        ValueError: `shift` or `groups` does not fit the number of patches.

    Example:
        >>> jigsaw_order(6, shift=2, groups=2).tolist()  # of 2 3 4 | 5 0 1
        [2, 5, 3, 0, 4, 1]

    Reference: He et al. 2021, TransReID, arXiv 2102.04378, section 3.2. Their code moves one patch
        less than its `shift_num`, whose default of 5 is 4 here.
    """
    if not (0 <= shift < num_patches and 1 <= groups <= num_patches) or num_patches < 2:
        raise ValueError(
            f"the jigsaw of {num_patches} patches needs a shift of 0 to {num_patches - 1} and 1 to "
            f"{num_patches} groups, got {shift} and {groups}"
        )
    row = torch.arange(num_patches).roll(-shift)
    row = torch.cat([row, row[-2].expand(-num_patches % groups)])
    return row.view(groups, -1).mT.flatten()


class Jigsaw(nn.Module):
    """Features of parts that each see patches from all over the image.

    Of the tokens before the last block, patches are put into the order of `jigsaw_order` and cut
    into `parts` pieces of equal length; what is left over is dropped. Each piece goes, with the
    prefix tokens, through a copy of the last block and its norm: the CLS token is its feature. The
    copy is without encodings, since its patches have no grid.

    Reference: He et al. 2021, TransReID, arXiv 2102.04378, section 3.2.

    Raises:
        ValueError: the model has no CLS token, or fewer patches than parts.
    """

    def __init__(self, vit: Any, parts: int, shift: int, groups: int) -> None:
        super().__init__()
        if not vit.has_class_token:
            raise ValueError("the jigsaw's features are CLS tokens, and this model has none")
        if (patches := vit.patch_embed.num_patches) < parts:
            raise ValueError(f"{patches} patches are too few for {parts} parts")
        jigsaw_order(patches, shift, groups)
        self.num_parts, self.shift, self.groups = parts, shift, groups
        self.block = copy.deepcopy(vit.blocks[-1])
        after_all = isinstance(vit.norm, nn.Identity)  # where the mean of the patches is normed
        self.norm = copy.deepcopy(vit.fc_norm if after_all else vit.norm)

    def forward(self, vit: Any, tokens: Tensor, before_last: Tensor) -> Tensor:
        """Of the tokens before the last block: `[B, parts, width]`."""
        prefix = vit.num_prefix_tokens
        first, patches = before_last[:, :prefix], before_last[:, prefix:]
        length = patches.shape[1] // self.num_parts
        order = jigsaw_order(patches.shape[1], self.shift, self.groups)
        pieces = patches[:, order[: length * self.num_parts].to(patches.device)]
        pieces = pieces.unflatten(1, (self.num_parts, length))
        first = first[:, None].expand(-1, self.num_parts, -1, -1)
        whole = torch.cat([first, pieces], dim=2)
        return self.norm(self.block(whole.flatten(0, 1))[:, 0]).unflatten(0, whole.shape[:2])
