"""A finished training with its data, and what it makes of them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from data.batches import read_image
from data.market import Photo, Splits
from model.network import ReIDNetwork
from search.features import check_has_answers, embed_photos, score
from search.labels import Labels
from search.retrieval import Scores
from torch import Tensor
from training.checkpoints import load_network
from training.config import Config, load_config
from training.photos import saw_these

from posenc import is_patched, patched_encodings


@dataclass(frozen=True, eq=False)
class Album:
    """What the pictures are drawn of."""

    run: Path
    network: ReIDNetwork
    config: Config
    data: Splits
    query: Tensor  # features
    gallery: Tensor
    scores: Scores

    def image(self, photo: Photo) -> np.ndarray:
        """`[height, width, 3]`."""
        return read_image(photo.path, self.config.size).permute(1, 2, 0).numpy()

    def encodings(self, kind: type) -> dict[str, Any]:
        """Site and name -> encoding of this class."""
        vit = self.network.vit
        known = patched_encodings(vit) if is_patched(vit) else {}
        return {name: one for name, one in known.items() if isinstance(one, kind)}

    @property
    def labels(self) -> Labels:
        """Of its queries and its gallery."""
        return Labels.of(self.data.query, self.data.gallery)

    @property
    def valid(self) -> list[int]:
        """Queries with a score, in the order of the scores."""
        return self.scores.is_valid.nonzero()[:, 0].tolist()

    @property
    def average_precision(self) -> dict[int, float]:
        """Of each query with a score."""
        return dict(zip(self.valid, self.scores.average_precision.tolist(), strict=True))

    @property
    def source(self) -> Path:
        """The folder that queries and gallery have in common."""
        folders = {photo.path.parent for photo in (*self.data.query, *self.data.gallery)}
        return Path(os.path.commonpath(folders))


def open_album(run: Path, data: Splits) -> Album:
    """Of a finished training."""
    check_has_answers(data)
    config = load_config(run)
    network = load_network(run)
    known = config.sie != "none" and saw_these(run, data.train)
    query, gallery = (
        embed_photos(network, part, config.size, are_cameras_known=known)
        for part in (data.query, data.gallery)
    )
    return Album(run, network, config, data, query, gallery, score(query, gallery, data))
