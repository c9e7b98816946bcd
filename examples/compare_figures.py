"""Pictures for compare_encodings.py: accuracies, and what each encoding learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

import posenc
from posenc.analysis import CapturedAttention, capture_attention
from posenc.analysis.plot import plot_bias, plot_similarity

BLOCK = 0  # whose attention is shown
IMAGES = 100  # over which contextual biases are averaged
PLACES = ((3, 3), (0, 0), (0, 3), (3, 6))  # center, corner, top and right of 7x7 patches


def draw_accuracy(rows: list[dict[str, Any]], path: Path) -> None:
    """One point per encoding and read-out, error bars over the seeds."""
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    for shift, readout, marker, color in ((-0.1, "CLS", "o", "C0"), (0.1, "mean", "s", "C1")):
        if rows[0]["encoding"] == "none":
            axes.axhline(rows[0][readout], color=color, linestyle=":", linewidth=1)
        axes.errorbar(
            [index + shift for index in range(len(rows))],
            [row[readout] for row in rows],
            yerr=[row[f"{readout} spread"] for row in rows],
            fmt=marker,
            color=color,
            capsize=4,
            label="read from the " + ("CLS token" if readout == "CLS" else "mean token"),
        )
    axes.set_xticks(range(len(rows)), [row["encoding"] for row in rows])
    axes.set_ylabel("test accuracy, %")
    axes.set_title(
        "A tiny ViT on real digits: what position adds (bars: spread over seeds, dotted: none)"
    )
    axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_learned(models: dict[str, nn.Module], images: Tensor, path: Path) -> None:
    """A row of pictures for each encoding, with its own color scale."""
    names = [name for name in models if name != "none"]
    figure = plt.figure(figsize=(9, 2.4 * len(names)), layout="constrained")
    rows = figure.subfigures(len(names), 1, squeeze=False)[:, 0]
    for name, row in zip(names, rows, strict=True):
        draw_row(models[name], images[:IMAGES], row)
        row.suptitle(
            f"{name}: {KINDS.get(name, 'bias that the center gives, logits')}", fontsize=10
        )
    figure.savefig(path, dpi=110)
    plt.close(figure)


KINDS = {
    "learned": "cosine of the positions of some patches with all, less their mean",
    "sinusoidal": "cosine of the positions of some patches with all, less their mean",
    "peg": "3x3 kernels of the strongest channels",
}


def draw_row(model: nn.Module, images: Tensor, row: Any) -> None:
    """What the encoding of one model learned."""
    encoding = next(iter(posenc.patched_encodings(model).values()))
    if isinstance(encoding, posenc.PEG):
        draw_kernels(encoding, row)
    elif isinstance(encoding, posenc.AttentionEncoding):
        plot_bias(capture(model, images), layers=BLOCK, image_index=None, figure=row)
    else:
        plot_similarity(model, queries=PLACES, center=True, figure=row)


def capture(model: nn.Module, images: Tensor) -> CapturedAttention:
    """Contextual biases depend on the image: they are averaged over real ones."""
    with torch.no_grad(), capture_attention(model.eval()) as captured:
        model(images)
    return captured


def draw_kernels(encoding: posenc.PEG, row: Any) -> None:
    """The convolution kernels with the largest weights."""
    weight = encoding.weight.detach()[:, 0]
    strongest = weight.flatten(1).norm(dim=1).topk(len(PLACES)).indices.tolist()
    limit = float(weight[strongest].abs().max()) or 1.0
    panels = row.subplots(1, len(strongest))
    for axes, channel in zip(panels, strongest, strict=True):
        image = axes.imshow(weight[channel], cmap="RdBu_r", vmin=-limit, vmax=limit)
        axes.set(xticks=[], yticks=[])
        axes.set_title(f"channel {channel}", fontsize=8)
    row.colorbar(image, ax=list(panels), shrink=0.8)
