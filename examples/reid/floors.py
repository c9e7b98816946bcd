"""What can be reached without learning: color histograms, raw pixels, a ViT with random weights.

python examples/reid/floors.py demo/pedestrians
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

try:
    from data.batches import photo_loader
    from data.market import Photo, Splits, read_dataset
    from model.network import build_network
    from options import Parser, add_data, command
    from search.features import check_has_answers, describe, embed, score
    from search.retrieval import Scores
    from training.config import Config
except ModuleNotFoundError as missing:
    raise SystemExit(f'{missing}: pip install ".[reid]"') from None

BINS = 4  # for each color channel
STRIPES = 6


def main() -> None:
    """Prints them."""
    parser = Parser(__doc__)
    add_data(parser, "data")
    args = parser.parse_args()
    data = read_dataset(args.data, args.kind, needs_train=False)
    check_has_answers(data)
    for name, scores in floors(data, Config()).items():
        print(f"{name}: {describe(scores)}")


def floors(data: Splits, config: Config) -> dict[str, Scores]:
    """Name -> scores, by the evaluation of the trained model."""
    network = build_network(replace(config, encoding="none"), 2)
    features: dict[str, Callable[[Tensor], Tensor]] = {
        "color histogram": lambda images: color_histogram(images, 1),
        f"color histogram of {STRIPES} stripes": lambda images: color_histogram(images, STRIPES),
        "pixels": pixels,
        "random ViT": lambda images: embed(network, [(images, None)])[0],
    }
    return {
        name: score(*(_all(part, config, feature) for part in (data.query, data.gallery)), data)
        for name, feature in features.items()
    }


def _all(photos: tuple[Photo, ...], config: Config, feature: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.cat([feature(images) for images, _ in photo_loader(photos, config.size)])


def color_histogram(images: Tensor, stripes: int) -> Tensor:
    """Roots of the shares of `BINS ** 3` colors in each horizontal stripe: `[B, numbers]`.

    The cosine of roots is the Bhattacharyya coefficient of two histograms.
    """
    levels = images.long() * BINS // 256
    colors = (levels[:, 0] * BINS + levels[:, 1]) * BINS + levels[:, 2]
    parts = [part.flatten(1) for part in colors.tensor_split(stripes, dim=1)]
    counts = [
        torch.zeros(len(images), BINS**3).scatter_add_(1, p, torch.ones(p.shape)) for p in parts
    ]
    return torch.cat([(count / count.sum(1, keepdim=True)).sqrt() for count in counts], dim=1)


def pixels(images: Tensor) -> Tensor:
    """Each channel without its mean, which is the light: `[B, 3 * height * width]`."""
    flat = images.float().flatten(2)
    return (flat - flat.mean(2, keepdim=True)).flatten(1)


if __name__ == "__main__":
    command(main)
