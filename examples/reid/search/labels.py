"""Who is on the photos of queries and gallery, and which cameras took them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from data.market import Photo
from torch import Tensor


class Labels(NamedTuple):
    """Integers of the photos of queries and gallery: tensors, arrays or lists."""

    query_people: Tensor
    gallery_people: Tensor
    query_cameras: Tensor
    gallery_cameras: Tensor

    @classmethod
    def of(cls, query: Sequence[Photo], gallery: Sequence[Photo]) -> Labels:
        """What is known of these photos."""
        parts = query, gallery
        people = (torch.tensor([photo.person for photo in part]) for part in parts)
        return cls(*people, *(torch.tensor([photo.camera for photo in part]) for part in parts))

    def of_queries(self, queries: Sequence[int]) -> Labels:
        """The labels where only these queries are asked."""
        return self._replace(
            query_people=self.query_people[queries], query_cameras=self.query_cameras[queries]
        )

    def checked(self, num_query: int, num_gallery: int, device: torch.device) -> Labels:
        """The same as tensors on a device.

        Raises:
            ValueError: there are no queries, no gallery, or labels that do not fit them.
        """
        if num_query == 0 or num_gallery == 0:
            raise ValueError(
                f"scores need at least one query and a gallery that is not empty, got {num_query} "
                f"queries and {num_gallery} gallery items; was the right folder read?"
            )
        labels = Labels(*(torch.as_tensor(one, device=device) for one in self))
        for name, one in labels._asdict().items():
            length = num_query if name.startswith("query") else num_gallery
            if one.shape != (length,) or one.is_floating_point():
                raise ValueError(
                    f"{name} must be integers [{length}], for {num_query} queries and "
                    f"{num_gallery} gallery items; got {one.dtype} {list(one.shape)}"
                )
        return labels

    def same_person(self, rows: slice) -> Tensor:
        """`[queries, num_gallery]`: whether a pair shows one person."""
        return self.query_people[rows, None] == self.gallery_people

    def left_out(self, rows: slice) -> Tensor:
        """`[queries, num_gallery]`: the same person by the same camera."""
        same_camera = self.query_cameras[rows, None] == self.gallery_cameras
        return self.same_person(rows) & same_camera
