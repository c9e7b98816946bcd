"""How far apart photos of one person are, and photos of two: the histograms of their distances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib import pyplot as plt
from search.distances import distance_chunks
from search.labels import Labels
from torch import Tensor

FARTHEST = 2.0  # of cosine distances
FINE = 4000  # bins that medians are read from
DRAWN = 50  # of which some are joined to be drawn
SAME, DIFFERENT = "#0072B2", "#D55E00"  # Okabe and Ito 2008


@dataclass(frozen=True, eq=False)
class Separation:
    """Counts `[FINE]` of pairs of a query and a gallery photo, by their cosine distance."""

    same: np.ndarray
    different: np.ndarray

    @property
    def median(self) -> float:
        """Of the pairs that show the same person, up to the width of a bin."""
        return _median(self.same)

    @property
    def nearer(self) -> float:
        """The share of pairs of different people that are nearer than this median."""
        until = round(self.median / FARTHEST * FINE)
        return self.different[:until].sum() / self.different.sum()


def count_pairs(query: Tensor, gallery: Tensor, labels: Labels) -> Separation:
    """All pairs that count: without those of one person by one camera."""
    labels = labels.checked(len(query), len(gallery), query.device)
    counts = [torch.zeros(FINE), torch.zeros(FINE)]
    for rows, distances in distance_chunks(query, gallery):
        same, left_out = labels.same_person(rows), labels.left_out(rows)
        bins = (distances * (FINE / FARTHEST)).long().clamp(0, FINE - 1)
        for count, chosen in zip(counts, (same & ~left_out, ~same), strict=True):
            count += torch.bincount(bins[chosen], minlength=FINE).cpu()
    return Separation(*(count.numpy() for count in counts))


def draw_separation(pairs: Separation) -> Any:
    """As shares of the pairs of each kind."""
    figure, axis = plt.subplots(figsize=(5, 3.6), layout="constrained")
    edges = np.linspace(0, FARTHEST, DRAWN + 1)
    for name, counts, color, line in (
        ("the same person, another camera", pairs.same, SAME, "solid"),
        ("different people", pairs.different, DIFFERENT, "dashed"),
    ):
        shares = 100 * counts.reshape(DRAWN, -1).sum(1) / max(1, counts.sum())
        style = {"color": color, "linestyle": line, "linewidth": 1.6}
        axis.stairs(shares, edges, label=f"{name} ({counts.sum():,.0f} pairs)", **style)
        axis.stairs(shares, edges, color=color, alpha=0.15, fill=True)
    text = f"median of the same; {100 * pairs.nearer:.2g} % of different people are nearer"
    axis.axvline(pairs.median, color=SAME, linewidth=1.2, linestyle="dotted", label=text)
    used = np.flatnonzero(pairs.same + pairs.different) * (FARTHEST / FINE)
    axis.set(
        xlabel="cosine distance of the features",
        ylabel="pairs, in % of their kind",
        xlim=(max(0, used[0] - 0.04), min(FARTHEST, used[-1] + 0.04)),
        title="pairs of a query and a photo of the gallery",
    )
    axis.set_ylim(0, 1.35 * axis.dataLim.y1)  # room for the legend
    axis.legend(fontsize=8, loc="upper left")
    axis.grid(alpha=0.3)
    return figure


def _median(counts: np.ndarray) -> float:
    """The upper edge of the bin in which half of the pairs are reached."""
    middle = np.searchsorted(counts.cumsum(), counts.sum() / 2)
    return float(middle + 1) * FARTHEST / FINE
