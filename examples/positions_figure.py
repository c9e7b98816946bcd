"""The picture of what_positions_learn.py: a row for each encoding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from torch import Tensor

# Okabe and Ito's colors.
COLORS = {
    "content": "#0072b2",
    "content x position": "#56b4e9",
    "position": "#e69f00",
    "bias": "#d55e00",
    "interaction": "0.7",
}
BLOCKS = (("block 0", "o", "#0072b2", "white"), ("block 1", "s", "#0072b2", "#0072b2"))
INCHES = 0.36  # of a row


def draw(studies: Sequence[Any], path: Path) -> None:
    """All panels share rows: those of maps, with one empty between encodings."""
    rows = [study.row for study in studies]
    pitch = studies[0].attention.shape[-2] + 1
    places = np.arange(len(rows)) * pitch + (pitch - 2) / 2
    height = INCHES * len(rows) + 1.9
    figure, panels = plt.subplots(
        1,
        6,
        figsize=(11.5, height),
        sharey=True,
        width_ratios=(INCHES, 4 * INCHES, 1.7, 1.7, 3.0, 1.5),
        layout="constrained",
    )
    show(panels[0], [[study.own] for study in studies], "RdBu_r", "bias or\ntable")
    show(panels[1], [list(study.attention) for study in studies], "viridis", "attention, by head")
    draw_accuracy(panels[2], rows, places)
    draw_blocks(panels[3], [mean_r2(row) for row in rows], places, "R2 of row and column")
    draw_shares(panels[4], rows, places)
    draw_blocks(panels[5], [row["distance"] for row in rows], places, "distance, patches")
    draw_baselines(panels, rows)
    panels[0].set_yticks(places, [row["encoding"] for row in rows], fontsize=9)
    panels[0].set_ylim(len(rows) * pitch - 0.5, -1.5)
    for axes in panels:
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", labelsize=8)
    for axes in panels[2:]:
        axes.grid(axis="x", alpha=0.3)
        for place in places:
            axes.axhline(place, color="0.93", linewidth=1, zorder=0)
    handles = [handle for axes in panels[3:5] for handle in axes.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8)
    figure.suptitle(
        "What positions learn: a tiny ViT on digits with each encoding, one seed "
        "(maps: the center patch in block 0, each on its own scale; dotted: without positions)",
        fontsize=10,
    )
    figure.savefig(path, dpi=100)
    plt.close(figure)


def show(axes: Any, maps: list[list[Tensor | None]], colors: str, title: str) -> None:
    """One image of all maps, each scaled to its largest value; gray is what is not seen."""
    height, width = next(m for row in maps for m in row if m is not None).shape
    mosaic = np.full((len(maps) * (height + 1), len(maps[0]) * (width + 1) - 1), np.nan)
    unseen = mosaic.copy()
    for i, row in enumerate(maps):
        for j, numbers in enumerate(row):
            if numbers is not None:
                y, x = i * (height + 1), j * (width + 1)
                patch = slice(y, y + height), slice(x, x + width)
                mosaic[patch] = scaled(numbers)
                unseen[patch] = 0.5
    low = -1 if colors == "RdBu_r" else 0
    axes.imshow(unseen, cmap="gray", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axes.imshow(mosaic, cmap=colors, vmin=low, vmax=1, aspect="auto", interpolation="nearest")
    axes.set_title(title, fontsize=9)
    axes.set_xticks([])
    axes.spines[:].set_visible(False)


def scaled(numbers: Tensor) -> np.ndarray:
    values = numbers.numpy()
    values = np.where(np.isfinite(values), values, np.nan)
    return values / (np.nanmax(np.abs(values)) or 1.0)


def mean(values: Iterable[float | None]) -> float | None:
    """Of those that are defined."""
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None


def mean_r2(row: dict[str, Any]) -> list[float | None]:
    """Of row and column, after each block."""
    return [mean(block.values()) for block in row["R2"]]


def mean_share(row: dict[str, Any], name: str) -> float | None:
    """Over blocks; None where it is not defined."""
    return mean(block[name] for block in row["shares"] or ())


def draw_accuracy(axes: Any, rows: list[dict[str, Any]], places: np.ndarray) -> None:
    """With the standard error that 500 images give."""
    share = np.array([row["accuracy"] for row in rows]) / 100
    error = np.sqrt(share * (1 - share) / 500)
    axes.errorbar(100 * share, places, xerr=100 * error, fmt="o", color="black", markersize=4)
    axes.set_title("test accuracy, %", fontsize=9)


def draw_blocks(axes: Any, values: list[list[float]], places: np.ndarray, title: str) -> None:
    """A mark for each block."""
    for index, (label, marker, edge, face) in enumerate(BLOCKS):
        style = {"markeredgecolor": edge, "markerfacecolor": face, "markersize": 5}
        numbers = [block[index] for block in values]
        axes.plot(numbers, places, marker, color="none", label=label, **style)
    axes.set_title(title, fontsize=9)


def draw_shares(axes: Any, rows: list[dict[str, Any]], places: np.ndarray) -> None:
    """Stacked to the right from 0, negative ones to the left; the mean of both blocks."""
    right, left = np.zeros(len(places)), np.zeros(len(places))
    for name, color in COLORS.items():
        values = np.array([mean_share(row, name) or 0.0 for row in rows])
        start = np.where(values < 0, left, right)
        axes.barh(places, values, left=start, height=5.2, color=color, label=name)
        right, left = right + np.maximum(values, 0), left + np.minimum(values, 0)
    for row, place in zip(rows, places, strict=True):
        if mean_share(row, "content") is None:
            reason = "queries see one key" if row["shares"] else "two attentions: no one logit"
            axes.text(0.02, place, reason, fontsize=7, va="center")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_title("shares of the logits' variance", fontsize=9)


def draw_baselines(panels: Sequence[Any], rows: list[dict[str, Any]]) -> None:
    """Lines at what the model without positions has, in its last block."""
    for row in rows:
        if row["encoding"] == "none":
            values = row["accuracy"], mean_r2(row)[-1], row["distance"][-1]
            for axes, value in zip((panels[2], panels[3], panels[5]), values, strict=True):
                axes.axvline(value, color="0.4", linestyle=":", linewidth=1.2)
