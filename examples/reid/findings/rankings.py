"""Which photos a query finds first, and which queries fare worst though they need not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from data.market import Photo
from matplotlib import pyplot as plt
from search.retrieval import nearest

from findings.album import Album
from findings.maps import capture, overlay_rollout, read_images

RANKS = 10
COLUMNS = RANKS + 2  # with the query, and the first right photo where it comes later
SMOOTHED = 8  # pixels on a side: noise does not count as contrast
FAINTEST = 4.0  # standard deviation, of 255
LEGEND = (
    "\N{CHECK MARK} the same person by another camera    \N{BALLOT X} someone else    "
    "\N{EN DASH} the same person by the same camera, which does not count    "
    "last column: the first match, where it comes later"
)
RULE = (
    "one query a person, without those that nobody could answer: no photo by another camera, or "
    f"the query or all of those photos without contrast (standard deviation below {FAINTEST:g} of "
    f"255 over squares of {SMOOTHED} pixels)"
)
# In inches: of a photo, between two, above a row, above all, below all
WIDTH, GAP, TITLES, TITLE, LEGENDS = 0.8, 0.1, 0.36, 0.28, 0.3
LATER = 0.15  # before the first right one


@dataclass(frozen=True)
class Verdict:
    """What a photo of the gallery is for a query. Colors: Okabe and Ito 2008."""

    sign: str
    color: str
    line: str


RIGHT = Verdict("\N{CHECK MARK}", "#0072B2", "solid")
WRONG = Verdict("\N{BALLOT X}", "#D55E00", "solid")
JUNK = Verdict("\N{EN DASH}", "#777777", "dashed")


@dataclass(frozen=True)
class Hit:
    """A photo that a query found: its rank among those that count, and what it is."""

    photo: Photo
    distance: float
    verdict: Verdict
    rank: int | None


def judge(query: Photo, other: Photo) -> Verdict:
    """By the protocol of Market-1501."""
    if other.person != query.person:
        return WRONG
    return JUNK if other.camera == query.camera else RIGHT


def ranked(album: Album, queries: Sequence[int], *, junk: bool) -> list[list[Hit]]:
    """The gallery as each query finds it, in order.

    Args:
        album: with the features.
        queries: which.
        junk: also what does not count, in its place and without a rank.
    """
    labels = album.labels.of_queries(queries)
    if junk:  # no camera has this number, so that nothing is left out
        labels = labels._replace(query_cameras=torch.full_like(labels.query_cameras, -1))
    found = nearest(album.query[queries], album.gallery, labels, len(album.gallery))
    rows = zip(queries, *(part.tolist() for part in found), strict=True)
    return [_hits(album, album.data.query[query], *row) for query, *row in rows]


def shown(hits: list[Hit]) -> list[Hit]:
    """The first ones, and the first right one where it comes later."""
    first, later = hits[:RANKS], hits[RANKS:]
    if any(hit.verdict is RIGHT for hit in first):
        return first
    return first + [hit for hit in later if hit.verdict is RIGHT][:1]


def _hits(album: Album, query: Photo, indices: list[int], distances: list[float]) -> list[Hit]:
    hits, rank = [], 0
    for index, distance in zip(indices, distances, strict=True):
        if index >= 0:
            photo = album.data.gallery[index]
            verdict = judge(query, photo)
            rank += verdict is not JUNK
            hits.append(Hit(photo, distance, verdict, None if verdict is JUNK else rank))
    return hits


def spread_queries(album: Album, count: int) -> list[int]:
    """From all over the set."""
    places = torch.linspace(0, len(album.valid) - 1, count).long()
    return [album.valid[place] for place in dict.fromkeys(places.tolist())]


def hardest_queries(album: Album, count: int) -> list[int]:
    """Those with the lowest average precision, by `RULE`."""
    chosen: dict[int, int] = {}
    precision = album.average_precision
    for query in sorted(album.valid, key=precision.__getitem__):
        person = album.data.query[query].person
        if person not in chosen and _can_be_seen(album, album.data.query[query]):
            chosen[person] = query
            if len(chosen) == count:
                break
    return list(chosen.values())


def _can_be_seen(album: Album, query: Photo) -> bool:
    matches = (photo for photo in album.data.gallery if judge(query, photo) is RIGHT)
    return has_contrast(album.image(query)) and any(
        has_contrast(album.image(photo)) for photo in matches
    )


def has_contrast(image: np.ndarray) -> bool:
    """Whether anything is on an image `[height, width, 3]` of 0 to 255."""
    gray = torch.as_tensor(image).float().mean(2)
    squares = [gray.shape[0] // SMOOTHED or 1, gray.shape[1] // SMOOTHED or 1]
    means = torch.nn.functional.adaptive_avg_pool2d(gray[None], squares)
    return means.std(correction=0).item() >= FAINTEST


def draw_hits(album: Album, queries: Sequence[int], title: str) -> Any:
    """A row for each query: what it found, of what counts."""
    rankings = map(shown, ranked(album, queries, junk=False))
    figure, rows = _grid(album, len(queries), 1, title)
    for (axes,), query, hits in zip(rows, queries, rankings, strict=True):
        _draw_photos(album, axes, query, hits)
    return figure


def draw_looks(album: Album, queries: Sequence[int], title: str) -> Any:
    """As `draw_hits`, with junk, and below each photo the attention rollout over it."""
    rankings = map(shown, ranked(album, queries, junk=True))
    figure, rows = _grid(album, len(queries), 2, title)
    for (above, below), query, hits in zip(rows, queries, rankings, strict=True):
        _draw_photos(album, above, query, hits)
        _draw_rollouts(album, below, query, hits)
    return figure


def _draw_photos(album: Album, axes: np.ndarray, query: int, hits: list[Hit]) -> None:
    photo = album.data.query[query]
    axes[0].imshow(album.image(photo))
    precision = album.average_precision[query]
    _frame(axes[0], f"person {photo.person}\nAP {precision:.2f}")
    for axis, hit in zip(axes[1:], hits, strict=False):
        axis.imshow(album.image(hit.photo))
        rank = "" if hit.rank is None else f" {hit.rank}"
        _frame(axis, f"{hit.verdict.sign}{rank}\n{hit.distance:.2f}", hit.verdict)


def _draw_rollouts(album: Album, axes: np.ndarray, query: int, hits: list[Hit]) -> None:
    photos = [album.data.query[query], *(hit.photo for hit in hits)]
    images = read_images(photos, album.network, album.config.size)
    captured = capture(album.network, images)
    verdicts = [None, *(hit.verdict for hit in hits)]
    for index, (axis, verdict) in enumerate(zip(axes, verdicts, strict=False)):
        overlay_rollout(album.network, captured, images, index, axis)
        _frame(axis, "", verdict)


def _grid(album: Album, rows: int, lines: int, title: str) -> tuple[Any, np.ndarray]:
    """A figure, and axes `[rows, lines, COLUMNS]`: much faster than a layout of matplotlib's."""
    height = WIDTH * album.config.height / album.config.width
    row = lines * (height + GAP) + TITLES
    size = COLUMNS * (WIDTH + GAP) + LATER, rows * row + TITLE + LEGENDS
    figure = plt.figure(figsize=size)
    figure.suptitle(title, y=1 - 0.1 / size[1], va="top", fontsize=11)
    figure.text(0.5, 0.08 / size[1], LEGEND, ha="center", fontsize=8)
    axes = np.empty((rows, lines, COLUMNS), dtype=object)
    for number, line, column in np.ndindex(axes.shape):
        left = column * (WIDTH + GAP) + GAP / 2 + LATER * (column > RANKS)
        top = TITLE + number * row + TITLES + line * (height + GAP)
        place = left, size[1] - top - height, WIDTH, height
        share = [one / size[i % 2] for i, one in enumerate(place)]
        axes[number, line, column] = figure.add_axes(share)
        axes[number, line, column].axis("off")
    return figure, axes


def _frame(axis: Any, title: str, verdict: Verdict | None = None) -> None:
    axis.axis("on")
    axis.set(xticks=[], yticks=[])
    color, line, width = (verdict.color, verdict.line, 2.5) if verdict else ("black", "solid", 1)
    axis.set_title(title, fontsize=7.5, pad=4, color=color, linespacing=1.1)
    for side in axis.spines.values():
        side.set(color=color, linestyle=line, linewidth=width)
