"""Draws what a trained network finds, where it looks, and what its positions have learned.

    python examples/reid/pictures.py runs/small --data demo/pedestrians --out demo
    python examples/reid/pictures.py runs/small --data demo/pedestrians --only rollout

Writes rank10.png, hardest.png, rollout.png, bias.png, similarity.png, parts.png and tsne.png, as
far as the network has what they show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from posenc import Body, HumanPart, is_patched, patched_encodings

try:
    import matplotlib
    import numpy as np
    from data.batches import read_image
    from data.market import Photo, Splits, read_dataset
    from findings import maps
    from findings.maps import read_images
    from matplotlib import pyplot as plt
    from model.network import ReIDNetwork
    from options import Parser, add_data, add_run, command
    from search.features import check_has_answers, embed_photos, score
    from search.labels import Labels
    from search.retrieval import Scores, nearest
    from training.checkpoints import load_network
    from training.config import Config, load_config
    from training.photos import saw_these

    from posenc.analysis.plot import plot_bias, plot_parts, plot_similarity
except ModuleNotFoundError as missing:
    raise SystemExit(f'{missing}: pip install ".[reid]"') from None

RIGHT, WRONG = "#2a9d3a", "#d1342f"
QUERIES, RANKS = 6, 10
PEOPLE = 12  # in the map of features


@dataclass(frozen=True)
class Album:
    """A network, its data, and what it makes of them."""

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


def main() -> None:
    """Draws all of them."""
    parser = Parser(__doc__)
    add_run(parser)
    add_data(parser)
    parser.add_argument("--out", type=Path, help="folder of the pictures, instead of the training")
    parser.add_argument(
        "--only", nargs="+", default=list(PICTURES), choices=list(PICTURES), help="these pictures"
    )
    args = parser.parse_args()
    album = open_album(args.run, read_dataset(args.data, args.kind, needs_train=False))
    written = draw(album, args.out or args.run, args.only)
    for path in written:
        print(path)
    if missing := set(args.only) - {path.stem for path in written}:
        print(f"nothing to show of {album.config.encoding!r}: {', '.join(sorted(missing))}")


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
    return Album(network, config, data, query, gallery, score(query, gallery, data))


def draw(album: Album, out: Path, names: Iterable[str] | None = None) -> list[Path]:
    """These pictures, or all, as far as the network has something for them."""
    out.mkdir(parents=True, exist_ok=True)
    matplotlib.use("agg")
    written = []
    for name in names or PICTURES:
        figure = PICTURES[name](album)
        if figure is not None:
            figure.savefig(out / f"{name}.png", dpi=110, bbox_inches="tight")
            plt.close(figure)
            written.append(out / f"{name}.png")
    return written


# Rankings


def draw_first_ranks(album: Album) -> Any:
    """Queries from all over the set."""
    valid = album.scores.is_valid.nonzero()[:, 0]
    chosen = valid[torch.linspace(0, len(valid) - 1, QUERIES).long()]
    return _draw_ranking(album, chosen.tolist(), "nearest in the gallery")


def draw_hardest(album: Album) -> Any:
    """Those whose person is found last."""
    valid = album.scores.is_valid.nonzero()[:, 0]
    hardest = album.scores.average_precision.argsort()[:QUERIES]
    return _draw_ranking(album, valid[hardest].tolist(), "the hardest queries")


def _draw_ranking(album: Album, queries: list[int], title: str) -> Any:
    labels = Labels.of(album.data.query, album.data.gallery).of_queries(queries)
    found, distances = nearest(album.query[queries], album.gallery, labels, RANKS)
    order = album.scores.is_valid.cumsum(0) - 1
    figure, axes = _grid(len(queries), RANKS + 1, album.config, title)
    for line, query in enumerate(queries):
        photo = album.data.query[query]
        precision = album.scores.average_precision[order[query]].item()
        _show(axes[line, 0], album.image(photo), f"{photo.person}, AP {precision:.2f}", "black")
        for place in range(RANKS):
            index = int(found[line, place])
            if index >= 0:
                other = album.data.gallery[index]
                colour = RIGHT if other.person == photo.person else WRONG
                text = f"{distances[line, place]:.2f}"
                _show(axes[line, place + 1], album.image(other), text, colour)
    return figure


# Attention and positions


def draw_rollout(album: Album) -> Any:
    """Two rows of photos, each over its attention rollout."""
    step = max(1, len(album.data.query) // 12)
    photos = album.data.query[::step][:12]
    images = read_images(photos, album.network, album.config.size)
    return maps.draw_rollout(album.network, images)


def draw_bias(album: Album) -> Any:
    """A row for each layer, a column for each head; the mean over some photos."""
    images = read_images(album.data.query[:16], album.network, album.config.size)
    captured = maps.capture(album.network, images)
    return plot_bias(captured, image_index=None) if captured.bias else None


def draw_similarity(album: Album) -> Any:
    """How alike the positions of two patches are, for each patch a map."""
    tables = maps.learned_tables(album.network)
    return plot_similarity(next(iter(tables.values()))) if tables else None


def draw_parts(album: Album) -> Any:
    """Centers of the body parts in each layer, over the mean of the training photos, if any."""
    if not (album.encodings(HumanPart) or album.encodings(Body)):
        return None
    photos = album.data.train or album.data.gallery
    photos = photos[:: max(1, len(photos) // 500)]
    mean = np.mean([album.image(photo) for photo in photos], axis=0) / 255
    return plot_parts(album.network.vit, mean)


def draw_tsne(album: Album) -> Any:
    """Features of some people, near to each other or not."""
    from sklearn.manifold import TSNE

    people = np.array([photo.person for photo in album.data.query])
    chosen = np.unique(people)[:: max(1, len(np.unique(people)) // PEOPLE)][:PEOPLE]
    photos, features = _all_of(album, chosen)
    unit = torch.nn.functional.normalize(features, dim=1).numpy()
    place = TSNE(perplexity=min(10, len(unit) - 1), init="pca", random_state=0).fit_transform(unit)
    figure, axis = plt.subplots(figsize=(9, 7))
    for (x, y), photo in zip(place, photos, strict=True):
        colour = matplotlib.colormaps["tab20"](int(np.searchsorted(chosen, photo.person)))
        picture = matplotlib.offsetbox.OffsetImage(album.image(photo), zoom=24 / album.config.width)
        frame = {"edgecolor": colour, "boxstyle": "square,pad=0.05", "linewidth": 1.5}
        axis.add_artist(matplotlib.offsetbox.AnnotationBbox(picture, (x, y), bboxprops=frame))
    axis.update_datalim(place)
    axis.margins(0.1)
    axis.autoscale()
    axis.set(xticks=[], yticks=[], title=f"t-SNE of the features of {len(chosen)} people")
    return figure


def _all_of(album: Album, people: np.ndarray) -> tuple[list[Photo], Tensor]:
    photos = [*album.data.query, *album.data.gallery]
    chosen = [i for i, photo in enumerate(photos) if photo.person in people]
    return [photos[i] for i in chosen], torch.cat([album.query, album.gallery])[chosen]


PICTURES: dict[str, Callable[[Album], Any]] = {
    "rank10": draw_first_ranks,
    "hardest": draw_hardest,
    "rollout": draw_rollout,
    "bias": draw_bias,
    "similarity": draw_similarity,
    "parts": draw_parts,
    "tsne": draw_tsne,
}


def _grid(rows: int, columns: int, config: Config, title: str) -> tuple[Any, np.ndarray]:
    shape = config.height / config.width
    size = 0.75 * columns, (0.75 * shape + 0.2) * rows + 0.4
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    figure.suptitle(title)
    return figure, axes


def _show(axis: Any, image: np.ndarray, text: str = "", colour: str | None = None) -> None:
    axis.imshow(image)
    axis.set_title(text, fontsize=7, pad=2, color=colour or "black")
    if colour is not None:
        axis.axis("on")
        axis.set(xticks=[], yticks=[])
        for side in axis.spines.values():
            side.set(color=colour, linewidth=2.5)


if __name__ == "__main__":
    command(main)
