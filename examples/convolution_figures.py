"""Pictures for attention_is_convolution.py: errors, and the places where heads look."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Rectangle
from matplotlib.ticker import MultipleLocator
from torch import Tensor

BLUE, ORANGE, GREEN, GRAY = "#0072b2", "#e69f00", "#009e73", "0.55"  # Okabe and Ito's
LINES = {
    "3x3, zeros": ("pixels as tokens, against zero padding", ORANGE, "s", 6, "-"),
    "3x3, replicate": ("pixels as tokens, against replicate padding", BLUE, "o", 10, "-"),
    "patches, zeros": ("patches as tokens, against zero padding", GREEN, "^", 6, "--"),
}


def draw_errors(alphas: Sequence[int], errors: dict[str, list[float]], path: Path) -> None:
    """Largest error against alpha, beside the error of one wrong neighbor."""
    figure, axes = plt.subplots(figsize=(6.5, 4), layout="constrained")
    for name, (label, color, marker, size, line) in LINES.items():
        style = {"marker": marker, "markerfacecolor": "none", "markersize": size, "label": label}
        axes.semilogy(alphas, errors[name], color=color, linestyle=line, **style)
    wrong = [math.exp(-alpha) for alpha in alphas]
    axes.semilogy(alphas, wrong, color=GRAY, linestyle=":", label=r"$e^{-\alpha}$")
    axes.set_xlabel(r"$\alpha$, of the bias, in logits")
    axes.set_ylabel("largest difference to conv2d")
    axes.set_title("Attention that becomes a convolution (float64)")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_centers(before: Any, after: Any, path: Path) -> None:
    """A panel for each layer, as figures 3 and 4 of the paper."""
    layers = len(before.centers)
    figure, panels = plt.subplots(
        1, layers, figsize=(3.1 * layers, 3.9), sharex=True, sharey=True, layout="constrained"
    )
    reach = max(p.centers.abs().max().item() for p in (before, after)) + 1.2
    for layer, axes in enumerate(panels):
        axes.set(xlim=(-reach, reach), ylim=(reach, -reach), aspect="equal")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MultipleLocator(2))
        axes.set_title(f"layer {layer}")
        axes.grid(alpha=0.25)
        axes.add_patch(Rectangle((-0.5, -0.5), 1, 1, color="black", alpha=0.75, linewidth=0))
        draw_heads(axes, before.centers[layer], after.centers[layer], after.alpha[layer])
    panels[0].set_ylabel("rows from the query")
    panels[layers // 2].set_xlabel("columns from the query (1 = a token of 2x2 pixels)")
    figure.legend(
        handles=[
            key("s", "black", "black", "query"),
            key("o", "white", GRAY, "center at the start"),
            key("o", BLUE, BLUE, "after training"),
            Line2D([], [], color=BLUE, label="circle: half of the head's attention"),
        ],
        loc="outside lower center",
        ncols=4,
        fontsize=8,
        handletextpad=0.4,
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


def key(marker: str, face: str, edge: str, label: str) -> Line2D:
    style = {"markerfacecolor": face, "markeredgecolor": edge, "markersize": 7}
    return Line2D([], [], color="none", marker=marker, label=label, **style)


def draw_heads(axes: Any, first: Tensor, last: Tensor, alpha: Tensor) -> None:
    """Of each head the start, the way, and the end with the circle of half of its attention.

    Softmax of `-alpha |d|^2` is a Gaussian of variance `1 / (2 alpha)`, half of which lies within
    `sqrt(log 2 / alpha)`.
    """
    for (y, x), (row, column), width in zip(
        first.tolist(), last.tolist(), alpha.tolist(), strict=True
    ):
        axes.plot([x, column], [y, row], color=GRAY, linewidth=1)
        axes.plot(x, y, "o", markerfacecolor="white", markeredgecolor=GRAY, markersize=6)
        axes.plot(column, row, "o", color=BLUE, markersize=6)
        if width > 0:
            radius = math.sqrt(math.log(2) / width)
            axes.add_patch(Circle((column, row), radius, fill=False, color=BLUE, alpha=0.6))
