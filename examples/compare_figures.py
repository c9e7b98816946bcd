"""Pictures for compare_encodings.py: accuracies, and what each encoding learned."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

import posenc

BLOCK = 0  # whose attention is shown
IMAGES = 100  # over which contextual biases are averaged
GRID = 7


def draw_accuracy(rows: list[dict[str, Any]], path: Path) -> None:
    """One point per encoding and read-out, error bars over the seeds."""
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    for shift, readout, marker, colour in ((-0.1, "CLS", "o", "C0"), (0.1, "mean", "s", "C1")):
        if rows[0]["encoding"] == "none":
            axes.axhline(rows[0][readout], color=colour, linestyle=":", linewidth=1)
        axes.errorbar(
            [index + shift for index in range(len(rows))],
            [row[readout] for row in rows],
            yerr=[row[f"{readout} spread"] for row in rows],
            fmt=marker,
            color=colour,
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
    """A row of four pictures for each encoding, with its own colour scale."""
    names = [name for name in models if name != "none"]
    figure, grid = plt.subplots(
        len(names), 4, figsize=(9, 2.2 * len(names)), layout="constrained", squeeze=False
    )
    for name, row in zip(names, grid, strict=True):
        panels = list(pictures(name, models[name], images[:IMAGES]))
        limit = max(float(picture.abs().max()) for _, picture, _ in panels) or 1.0
        for axes, (title, picture, mark) in zip(row, panels, strict=True):
            image = axes.imshow(picture, cmap="RdBu_r", vmin=-limit, vmax=limit)
            decorate(axes, title, mark)
        row[0].set_ylabel(f"{name}\n{KINDS.get(name, 'attention bias')}", fontsize=9)
        figure.colorbar(image, ax=list(row), shrink=0.8)
    figure.suptitle(
        f"What each encoding learned (block {BLOCK}; the cross marks the patch that looks)",
        fontsize=11,
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


KINDS = {
    "learned": "cosine similarity\nof positions",
    "sinusoidal": "cosine similarity\nof positions",
    "peg": "3x3 kernels,\nstrongest channels",
}


def pictures(
    name: str, model: nn.Module, images: Tensor
) -> Iterator[tuple[str, Tensor, tuple[int, int] | None]]:
    """Four times (title, picture, marked patch)."""
    encoding = next(iter(posenc.patched_encodings(model).values()))
    if isinstance(encoding, posenc.PEG):
        yield from kernels(encoding)
    elif isinstance(encoding, posenc.AttentionEncoding):
        yield from biases(model, images)
    else:
        yield from similarities(encoding)


def biases(model: nn.Module, images: Tensor) -> Iterator[tuple[str, Tensor, tuple[int, int]]]:
    """The bias from the center patch to all patches, per head, relative to its mean.

    A bias is defined up to a constant per query, so only differences mean something. Contextual
    biases depend on the image: they are averaged over real ones.
    """
    site = f"blocks.{BLOCK}.attn."
    encoding = next(e for n, e in posenc.patched_encodings(model).items() if n.startswith(site))
    seen: list[Tensor] = []
    hook = encoding.register_forward_hook(
        lambda module, inputs, terms: seen.append(sum(term.dense() for term in terms))
    )
    with torch.no_grad():
        model.eval()(images)
    hook.remove()
    center = GRID // 2
    query = 1 + center * GRID + center  # after the CLS token
    rows = seen[0].mean(dim=0)[:, query, 1:]
    for head, row in enumerate(rows.expand(4, -1)):
        yield f"head {head}", (row - row.mean()).reshape(GRID, GRID), (center, center)


def similarities(encoding: nn.Module) -> Iterator[tuple[str, Tensor, tuple[int, int]]]:
    """Cosine similarity of one patch's position vector to all others."""
    layout = posenc.TokenLayout(GRID, GRID, prefix=1)
    with torch.no_grad():
        table = encoding(torch.zeros(1, layout.num_tokens, encoding.embed_dim), layout)[0, 1:]
    table = torch.nn.functional.normalize(table - table.mean(dim=0), dim=-1)
    last, center = GRID - 1, GRID // 2
    for title, (row, column) in {
        "from the center": (center, center),
        "from the corner": (0, 0),
        "from the top": (0, center),
        "from the right": (center, last),
    }.items():
        picture = (table @ table[row * GRID + column]).reshape(GRID, GRID)
        yield title, picture, (row, column)


def kernels(encoding: posenc.PEG) -> Iterator[tuple[str, Tensor, None]]:
    """The convolution kernels with the largest weights."""
    weight = encoding.weight.detach()[:, 0]
    strongest = weight.flatten(1).norm(dim=1).topk(4).indices.tolist()
    for channel in strongest:
        yield f"channel {channel}", weight[channel], None


def decorate(axes: Axes, title: str, mark: tuple[int, int] | None) -> None:
    axes.set_title(title, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
    if mark is not None:
        axes.plot(mark[1], mark[0], "kx", markersize=7)
