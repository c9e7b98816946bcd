"""Where a network looks, and what its positions are, as maps over the crop."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from batches import read_image
from market import Photo
from matplotlib import colormaps
from network import ReIDNetwork
from torch import Tensor

from posenc import LearnedAbsolute, is_patched, patched_encodings
from posenc.analysis import (
    CapturedAttention,
    attention_rollout,
    bias_map,
    capture_attention,
    position_similarity,
)

GAP = 2  # pixels between pictures


def rollout_maps(network: ReIDNetwork, images: Tensor) -> Tensor:
    """Attention rollout `[B, height, width]` over the crops `[B, 3, height, width]`, 0 to 1."""
    captured = _capture(network, images)
    (layout,) = set(captured.layouts.values())
    pool = network.vit.global_pool  # the tokens that the feature is made of
    maps = attention_rollout(captured.attention, layout, discard_ratio=0.5, pool=pool)
    size = images.shape[-2:]
    smooth = F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    low, high = (extreme(smooth, dim=(1, 2), keepdim=True) for extreme in (torch.amin, torch.amax))
    return (smooth - low) / (high - low).clamp(min=1e-9)


def bias_maps(network: ReIDNetwork, images: Tensor, query: tuple[float, float]) -> Tensor:
    """What one patch gives to each, in logits: `[layers, heads, grid height, grid width]`.

    The patch is the one at (y, x), in heights and widths of the crop. The mean over the images,
    for encodings that depend on them. Empty without any bias.
    """
    captured = _capture(network, images)
    maps = []
    for name, bias in captured.bias.items():
        layout = captured.layouts[name]
        row, column = (int(q * side) for q, side in zip(query, layout.grid, strict=True))
        heads = captured.attention[name].shape[1]
        maps.append(bias_map(bias.mean(0), layout, (row, column)).expand(heads, -1, -1))
    return torch.stack(maps) if maps else torch.empty(0)


def similarities(network: ReIDNetwork) -> dict[str, Tensor]:
    """Name -> cosine similarity of each patch's learned position to all: `[h, w, h, w]`."""
    known = patched_encodings(network.vit) if is_patched(network.vit) else {}
    tables = {name: one for name, one in known.items() if isinstance(one, LearnedAbsolute)}
    return {
        name: position_similarity(table, table.layout)
        for name, table in tables.items()
        if table.table.any()  # zero at the start: without a direction
    }


def _capture(network: ReIDNetwork, images: Tensor) -> CapturedAttention:
    was_training = network.training
    network.eval()
    with torch.no_grad(), capture_attention(network.vit) as captured:
        network(images)
    network.train(was_training)
    return captured


def read_images(photos: Sequence[Photo], network: ReIDNetwork, size: tuple[int, int]) -> Tensor:
    """On the device of the network."""
    images = torch.stack([read_image(photo.path, size) for photo in photos])
    return images.to(network.classifier.weight.device)


def draw_maps(
    network: ReIDNetwork, photos: Sequence[Photo], size: tuple[int, int]
) -> dict[str, np.ndarray]:
    """Pictures `[1, height, width, 3]` for a tracker: rollout over photos, and of positions."""
    images = read_images(photos, network, size)
    pictures = {"rollout": side_by_side(overlays(images, rollout_maps(network, images)))}
    for name, similarity in similarities(network).items():
        rows = [side_by_side([coloured(_zoomed(one)) for one in row]) for row in similarity.cpu()]
        pictures[f"similarity, {name}"] = np.concatenate(rows)
    biases = bias_maps(network, images, (0.5, 0.5)).cpu()
    if biases.numel():
        rows = [side_by_side([coloured(_zoomed(head)) for head in layer]) for layer in biases]
        pictures["bias of the center"] = np.concatenate(rows)
    return {name: picture[None] for name, picture in pictures.items()}


def overlays(images: Tensor, maps: Tensor) -> list[np.ndarray]:
    """Each image, then each image under its map."""
    photos = [image.permute(1, 2, 0).numpy() for image in images.cpu()]
    heat = [coloured(one, "inferno") for one in maps.cpu()]
    mixed = [(0.45 * a + 0.55 * b).astype(np.uint8) for a, b in zip(photos, heat, strict=True)]
    return [picture for pair in zip(photos, mixed, strict=True) for picture in pair]


def coloured(numbers: Tensor, colours: str = "coolwarm") -> np.ndarray:
    """`[height, width, 3]` uint8; maps that may be negative have their middle at 0."""
    values = numbers.float().numpy()
    if colours == "coolwarm":
        values = 0.5 + 0.5 * values / max(float(np.abs(values).max()), 1e-9)
    return (colormaps[colours](values)[..., :3] * 255).astype(np.uint8)


def side_by_side(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """With white between them and below."""
    return np.concatenate(
        [np.pad(p, ((0, GAP), (0, GAP), (0, 0)), constant_values=255) for p in pictures], axis=1
    )


def _zoomed(grid: Tensor, times: int = 6) -> Tensor:
    return grid.repeat_interleave(times, 0).repeat_interleave(times, 1)
