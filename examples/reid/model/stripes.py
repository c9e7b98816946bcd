"""Parts as horizontal stripes of the image."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from model.patches import check_has_one_size


class Stripes(nn.Module):
    """The mean of the patches of each horizontal stripe, one below the other.

    Where the rows of patches cannot be divided by the number of stripes, neighbors share a row: a
    stripe `i` of `p` goes from row `floor(i H / p)` to before row `ceil((i + 1) H / p)`.

    Reference: Sun et al. 2018, PCB, arXiv 1711.09349, section 3.1. Their 1x1 convolution, which
        makes 2048 channels of a ResNet to 256, is left out: a ViT has no more to begin with.

    Raises:
        ValueError: the image has fewer rows of patches than stripes, or its size may change.
    """

    def __init__(self, vit: Any, parts: int) -> None:
        super().__init__()
        self.num_parts = parts
        check_has_one_size(vit, "--parts stripes")
        if (rows := vit.patch_embed.grid_size[0]) < parts:
            raise ValueError(f"{rows} rows of patches are too few for {parts} stripes")

    def forward(self, vit: Any, tokens: Tensor, before_last: Tensor | None) -> Tensor:
        """Of the tokens after all blocks: `[B, parts, width]`."""
        image = tokens[:, vit.num_prefix_tokens :].mT.unflatten(2, vit.patch_embed.grid_size)
        stripes = F.adaptive_avg_pool2d(image, (self.num_parts, 1))
        return vit.fc_norm(stripes.squeeze(3).mT)
