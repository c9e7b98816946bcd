"""All of a run on one page: `index.html`, with links to the pictures beside it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image
from search.features import summarize
from training.config import CONFIG, Config

from findings.album import Album
from findings.rankings import RULE

PAGE = "index.html"
# Files of a training and of its evaluation that the page links to, where they are.
FILES = (
    CONFIG,
    "scores.json",
    *(f"evaluation/{name}" for name in ("scores.json", "cmc.csv", "queries.csv")),
)
WORDS = {
    "rank10": (
        "what queries find",
        "Queries from all over the set, the nearest of the gallery in order, and below each the "
        "attention rollout: what of the crop reaches the feature.",
    ),
    "hardest": ("hardest queries", f"The lowest average precision: {RULE}."),
    "cmc": ("CMC", "How often a match is among the first."),
    "distances": (
        "distances",
        "Pairs of a query and a photo of the gallery, without those of one person by one camera.",
    ),
    "learning": ("learning curves", "What the training logged."),
    "rollout": ("attention rollout", "What of a crop reaches the feature."),
    "bias": (
        "biases",
        "What the patch in the center gives to each patch: a row a layer, with a scale of its own.",
    ),
    "similarity": (
        "positions",
        "How alike the learned positions are: in the place of each patch, its cosines with all.",
    ),
    "parts": ("body parts", "Centers of the parts in each layer, over the mean of many photos."),
    "tsne": ("map of features", "Near photos have near features, as far as a plane can tell."),
}
WIDE = 750  # pixels, from which a picture gets a row of its own


@dataclass(frozen=True)
class Picture:
    """A file beside the page, and its words."""

    file: str
    name: str
    title: str
    caption: str
    width: int
    height: int

    @property
    def is_wide(self) -> bool:
        """Whether it needs the whole width."""
        return self.width >= WIDE


def write_page(album: Album, pictures: Sequence[Path], missing: Iterable[str], out: Path) -> Path:
    """Into the folder of the pictures."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    text = environment.get_template("page.html").render(
        name=album.run.resolve().name,
        encoding=album.config.encoding,
        source=album.source,
        queries=len(album.data.query),
        gallery=len(album.data.gallery),
        scores=list(_scores(album)),
        pictures=[_picture(path) for path in pictures],
        links=list(_links(album.run, out)),
        config=list(_options(album.config)),
        missing=sorted(missing),
    )
    (out / PAGE).write_text(text, encoding="utf-8")
    return out / PAGE


def _scores(album: Album) -> Iterator[tuple[str, str]]:
    for name, value in summarize(album.scores).items():
        yield name, f"{value}" if isinstance(value, int) else f"{100 * value:.1f} %"


def _picture(path: Path) -> Picture:
    with Image.open(path) as image:
        return Picture(path.name, path.stem, *WORDS[path.stem], *image.size)


def _links(run: Path, out: Path) -> Iterator[tuple[str, str]]:
    """Relative, so that the folders can be moved together."""
    for name in FILES:
        if (run / name).is_file():
            yield name, quote(Path(os.path.relpath(run / name, out)).as_posix())


def _options(config: Config) -> Iterator[tuple[str, str, bool]]:
    usual = asdict(Config())
    for name, value in asdict(config).items():
        yield name.replace("_", "-"), str(value), value != usual[name]
