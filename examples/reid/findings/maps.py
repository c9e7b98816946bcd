"""Where a network looks, and what its positions are, for trackers and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from data.batches import read_image
from data.market import Photo
from matplotlib import pyplot as plt
from model.network import ReIDNetwork
from model.patches import is_overlapping
from torch import Tensor

from posenc import LearnedAbsolute, is_patched, patched_encodings
from posenc.analysis import CapturedAttention, capture_attention
from posenc.analysis.plot import plot_bias, plot_rollout, plot_similarity


def read_images(photos: Sequence[Photo], network: ReIDNetwork, size: tuple[int, int]) -> Tensor:
    """On the device of the network."""
    images = torch.stack([read_image(photo.path, size) for photo in photos])
    return images.to(network.classifier.weight.device)


def capture(network: ReIDNetwork, images: Tensor) -> CapturedAttention:
    """What the attention of a network computes for these crops."""
    was_training = network.training
    network.eval()
    with torch.no_grad(), capture_attention(network.vit) as captured:
        network(images)
    network.train(was_training)
    return captured


def learned_tables(network: ReIDNetwork) -> dict[str, LearnedAbsolute]:
    """Name -> learned positions that have a direction: they are zero at the start."""
    known = patched_encodings(network.vit) if is_patched(network.vit) else {}
    tables = {name: one for name, one in known.items() if isinstance(one, LearnedAbsolute)}
    return {name: one for name, one in tables.items() if one.table.any()}


def overlay_rollout(
    network: ReIDNetwork, captured: CapturedAttention, images: Tensor, index: int, axis: Any
) -> None:
    """One of the crops that were captured, under its attention rollout."""
    patch = None
    if is_overlapping(network.vit):  # each patch has its share of the image
        (height, width), (rows, columns) = images.shape[-2:], network.vit.patch_embed.grid_size
        patch = height / rows, width / columns
    plot_rollout(
        images[index].cpu(),
        captured,
        discard_ratio=0.5,
        pool=network.vit.global_pool,  # the tokens that the feature is made of
        image_index=index,
        patch_size=patch,
        colorbar=False,
        ax=axis,
    )


def draw_rollout(network: ReIDNetwork, images: Tensor) -> Any:
    """A row of crops, each over its attention rollout."""
    captured = capture(network, images)
    height, width = images.shape[-2:]
    size = 0.75 * len(images), 1.5 * height / width + 0.4
    figure, axes = plt.subplots(2, len(images), figsize=size, squeeze=False, layout="compressed")
    for index, (above, below) in enumerate(axes.T):
        above.imshow(images[index].cpu().permute(1, 2, 0).numpy())
        above.set(xticks=[], yticks=[])
        overlay_rollout(network, captured, images, index, below)
    figure.suptitle("attention rollout")
    return figure


def draw_maps(
    network: ReIDNetwork, photos: Sequence[Photo], size: tuple[int, int]
) -> dict[str, np.ndarray]:
    """Pictures `[1, height, width, 3]` for a tracker: rollout over photos, and of positions."""
    images = read_images(photos, network, size)
    figures = {"rollout": draw_rollout(network, images)}
    for name, table in learned_tables(network).items():
        figures[f"similarity, {name}"] = plot_similarity(table)
    captured = capture(network, images)
    if captured.bias:
        figures["bias of the center"] = plot_bias(captured, image_index=None)
    return {name: _pixels(figure)[None] for name, figure in figures.items()}


def _pixels(figure: Any) -> np.ndarray:
    """Draws and closes a figure."""
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
    plt.close(figure)
    return pixels
