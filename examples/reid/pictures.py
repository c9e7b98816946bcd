"""Draws what a trained network finds, where it looks, and what its positions have learned.

    python examples/reid/pictures.py runs/small --data demo/pedestrians --out demo
    python examples/reid/pictures.py runs/small --data demo/pedestrians --only rollout

Writes rank10.png, hardest.png, cmc.png, distances.png, learning.png, rollout.png, bias.png,
similarity.png, parts.png and tsne.png, as far as the network has what they show, and index.html,
a page of all of them with scores and options. It links to the pictures beside it, and needs no
network. With --only there is no page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from posenc import Body, HumanPart

try:
    import matplotlib
    import numpy as np
    from data.market import Photo, read_dataset
    from findings import maps
    from findings.album import Album, open_album
    from findings.curves import draw_cmc
    from findings.learning import draw_curves, read_curves
    from findings.maps import read_images
    from findings.page import write_page
    from findings.rankings import draw_hits, draw_looks, hardest_queries, spread_queries
    from findings.separation import count_pairs, draw_separation
    from matplotlib import pyplot as plt
    from options import Parser, add_data, add_run, command

    from posenc.analysis.plot import plot_bias, plot_parts, plot_similarity
except ModuleNotFoundError as missing:
    raise SystemExit(f'{missing}: pip install ".[reid]"') from None

QUERIES, HARDEST = 4, 6
DOTS = 110  # an inch
# Of people in the map of features: Okabe and Ito 2008
COLORS = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000"


def main() -> None:
    """Draws all of them."""
    parser = Parser(__doc__)
    add_run(parser)
    add_data(parser)
    parser.add_argument("--out", type=Path, help="folder of the pictures, instead of the training")
    parser.add_argument(
        "--only", nargs="+", choices=list(PICTURES), help="these pictures; default: all, and a page"
    )
    args = parser.parse_args()
    album = open_album(args.run, read_dataset(args.data, args.kind, needs_train=False))
    written = draw(album, args.out or args.run, args.only)
    for path in written:
        print(path)
    if missing := set(args.only or PICTURES) - {path.stem for path in written}:
        print(f"nothing to show of {album.config.encoding!r}: {', '.join(sorted(missing))}")


def draw(album: Album, out: Path, names: Iterable[str] | None = None) -> list[Path]:
    """These pictures, or all and the page of them, as far as the network has what they show."""
    out.mkdir(parents=True, exist_ok=True)
    matplotlib.use("agg")
    written = [path for name in names or PICTURES if (path := _write(album, name, out))]
    if names is None:
        missing = set(PICTURES) - {path.stem for path in written}
        written.append(write_page(album, written, missing, out))
    return written


def _write(album: Album, name: str, out: Path) -> Path | None:
    figure = PICTURES[name](album)
    if figure is None:
        return None
    figure.savefig(out / f"{name}.png", dpi=DOTS, bbox_inches="tight")
    plt.close(figure)
    return out / f"{name}.png"


# Rankings


def draw_first_ranks(album: Album) -> Any:
    """Queries from all over the set, and where the network looks."""
    queries = spread_queries(album, QUERIES)
    return draw_looks(album, queries, "nearest in the gallery, and attention rollout")


def draw_hardest(album: Album) -> Any:
    """Those whose person is found last, though it can be seen."""
    queries = hardest_queries(album, HARDEST)
    return draw_hits(album, queries, "the hardest queries, one a person") if queries else None


# Numbers


def draw_match_curve(album: Album) -> Any:
    """How often a match is among the first."""
    return draw_cmc(album.scores, album.source.name)


def draw_distances(album: Album) -> Any:
    """Of the same person, and of different ones."""
    return draw_separation(count_pairs(album.query, album.gallery, album.labels))


def draw_learning(album: Album) -> Any:
    """What the training logged, if it did so in its folder."""
    curves = read_curves(album.run)
    return draw_curves(curves) if curves else None


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
    mean = np.mean([album.image(photo) for photo in photos], axis=0)
    return plot_parts(album.network.vit, (mean - mean.min()) / np.ptp(mean))  # means are pale


def draw_tsne(album: Album) -> Any:
    """Features of some people, near to each other or not."""
    from sklearn.manifold import TSNE

    people = np.array([photo.person for photo in album.data.query])
    chosen = np.unique(people)[:: max(1, len(np.unique(people)) // len(COLORS))][: len(COLORS)]
    photos, features = _all_of(album, chosen)
    unit = torch.nn.functional.normalize(features, dim=1).numpy()
    place = TSNE(perplexity=min(10, len(unit) - 1), init="pca", random_state=0).fit_transform(unit)
    figure, axis = plt.subplots(figsize=(9, 7))
    for (x, y), photo in zip(place, photos, strict=True):
        color = COLORS[int(np.searchsorted(chosen, photo.person))]
        picture = matplotlib.offsetbox.OffsetImage(album.image(photo), zoom=22 / album.config.width)
        frame = {"edgecolor": color, "boxstyle": "square,pad=0", "linewidth": 3}
        axis.add_artist(matplotlib.offsetbox.AnnotationBbox(picture, (x, y), bboxprops=frame))
    axis.update_datalim(place)
    axis.margins(0.1)
    axis.autoscale()
    axis.set(
        xticks=[],
        yticks=[],
        title=f"t-SNE of the features of {len(chosen)} people, each with a color",
    )
    return figure


def _all_of(album: Album, people: np.ndarray) -> tuple[list[Photo], Tensor]:
    photos = [*album.data.query, *album.data.gallery]
    chosen = [i for i, photo in enumerate(photos) if photo.person in people]
    return [photos[i] for i in chosen], torch.cat([album.query, album.gallery])[chosen]


PICTURES: dict[str, Callable[[Album], Any]] = {
    "rank10": draw_first_ranks,
    "hardest": draw_hardest,
    "cmc": draw_match_curve,
    "distances": draw_distances,
    "learning": draw_learning,
    "rollout": draw_rollout,
    "bias": draw_bias,
    "similarity": draw_similarity,
    "parts": draw_parts,
    "tsne": draw_tsne,
}


if __name__ == "__main__":
    command(main)
