"""Side information: the ViT is told which camera took a photo, and from which side."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class SideInformation(nn.Module):
    """A row of a learned table for each camera and view, added to every token.

        tokens + scale * table[camera, view]

    with a table `[cameras, views, width]`. A camera that is not among the known ones gets the mean
    of the rows of all cameras, and likewise a view. Rows start as normal numbers of deviation 0.02.

    Args:
        width: of the tokens.
        cameras: numbers of the known ones; none where only views are told.
        views: likewise.
        scale: of the rows, lambda in the paper, which has 3 for its ViT.

    Reference: He et al. 2021, TransReID, arXiv 2102.04378, section 3.3. The mean row is ours: the
        paper's tests have the cameras of the training.
    """

    def __init__(
        self, width: int, cameras: Sequence[int], views: Sequence[int], scale: float
    ) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("cameras", torch.tensor(cameras, dtype=torch.int64))
        self.register_buffer("views", torch.tensor(views, dtype=torch.int64))
        self.table = nn.Parameter(torch.empty(max(1, len(cameras)), max(1, len(views)), width))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, sides: Tensor) -> Tensor:
        """`[B, 2]`, camera and view, to what is added, `[B, 1, width]`."""
        return self.scale * self.rows(sides)[:, None]

    def rows(self, sides: Tensor) -> Tensor:
        """`[B, 2]` to `[B, width]`, without the scale."""
        table = torch.cat([self.table, self.table.mean(0, keepdim=True)])
        table = torch.cat([table, table.mean(1, keepdim=True)], dim=1)
        return table[_place(self.cameras, sides[:, 0]), _place(self.views, sides[:, 1])]

    def start_from(self, other: SideInformation, *, same_cameras: bool) -> None:
        """Takes the rows of another training, where a camera has the same number.

        Without `same_cameras` the numbers are those of other cameras, and all rows become the mean.
        """
        cameras, views = self.cameras.tolist() or [-1], self.views.tolist() or [-1]
        pairs = torch.tensor([(camera, view) for camera in cameras for view in views])
        pairs = pairs if same_cameras else torch.full_like(pairs, -1)
        with torch.no_grad():
            self.table.copy_(other.rows(pairs.to(other.table.device)).view_as(self.table))


def _place(known: Tensor, asked: Tensor) -> Tensor:
    """Where each number stands in the list, or the length of the list: the row of the unknown."""
    same = asked[:, None] == known
    place = (same * torch.arange(len(known), device=known.device)).sum(1)
    return torch.where(same.any(1), place, len(known))
