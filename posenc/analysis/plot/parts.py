"""Where the body parts of `human_part` are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from posenc.analysis.plot import canvas, choose, picture
from posenc.encodings import HumanPart
from posenc.patching.checkpoint import patched_encodings
from posenc.patching.patch import patched_backbone

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

CALLER = "plot_parts"
FIVE = ("head", "chest", "hips", "thighs", "shins")
# Of Okabe and Ito, without black and yellow.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")


def plot_parts(
    model: nn.Module,
    background: Any = None,
    *,
    names: Sequence[str] | None = None,
    figure: Figure | SubFigure | None = None,
) -> Figure | SubFigure:
    r"""Draws the centers of the parts of each encoding `human_part`, and the width of a part.

    A panel a layer: a line is a center, the band around it goes one `t` up and down. Centers
    outside of the crop are named below the panel. The title tells the mean over heads of
    `|strength|`, without which the parts have no effect.

    Args:
        model: patched with `human_part`.
        background: an image of a crop, of any size, such as the mean of many, as for
            `plot_attention`; heights are then in its pixels. Default: none, heights in crops.
        names: of the parts. Default: what the five parts start as, or numbers.
        figure: an empty one to draw into. Default: a new one.

    Raises:
        ValueError: the model is not patched, or not with `human_part`; another number of names.
        TypeError: no model, or no image.
        ModuleNotFoundError: matplotlib is not installed.

    Returns:
        The figure.

    >>> import timm, posenc
    >>> from matplotlib.figure import Figure
    >>> vit = timm.create_model("vit_tiny_patch16_224", img_size=(64, 32), depth=2)
    >>> figure = plot_parts(posenc.patch_model(vit, "human_part"), figure=Figure())
    >>> [axes.get_title() for axes in figure.axes]
    ['block 0\nstrength 0.00', 'block 1\nstrength 0.00']
    """
    canvas.check_figure(figure, CALLER)
    found = _parts_of(model)
    most = max(found.values(), key=lambda part: part.parts).parts
    names = _names(names, most)
    shown = None if background is None else picture.to_picture(background, CALLER)

    ratio = 2.0 if shown is None else shown.shape[0] / shown.shape[1]
    width, height = canvas.panel_size(1, len(found), ratio, largest=1.8)
    figure = canvas.figure_of(figure, (len(found) * width + 1.5, height + 0.9), CALLER)
    grid = figure.subplots(1, len(found), squeeze=False, sharey=True)[0]
    labels = choose.short_labels(list(found))
    for axes, label, (name, part) in zip(grid, labels, found.items(), strict=True):
        _draw_layer(axes, part, names, shown)
        strength = part.strength.detach().abs().mean().item()
        title = f"block {label}" if label != name else name
        axes.set_title(f"{title}\nstrength {strength:.2f}", fontsize=canvas.SMALLER)
    unit = "crops" if shown is None else "pixels"
    grid[0].set_ylabel(f"height ({unit})", fontsize=canvas.SMALLER)
    handles, texts = max(
        (axes.get_legend_handles_labels() for axes in grid), key=lambda h: len(h[0])
    )
    figure.legend(handles, texts, loc="outside right upper", title="started as", fontsize=8)
    return figure


def _parts_of(model: Any) -> dict[str, HumanPart]:
    """Name of each encoding -> the encoding."""
    patched_backbone(model)  # raises where nothing is patched
    known = patched_encodings(model)
    found = {name: one for name, one in known.items() if isinstance(one, HumanPart)}
    if not found:
        has = ", ".join(sorted({name.rpartition(".")[2] for name in known}))
        raise ValueError(
            f'{CALLER}: the model has no encoding "human_part", it is patched with {has or "none"}'
        )
    return found


def _names(names: Sequence[str] | None, parts: int) -> Sequence[str]:
    if names is None:
        return FIVE if parts == len(FIVE) else [f"part {number}" for number in range(parts)]
    if isinstance(names, str) or len(names) != parts:
        raise ValueError(f"{CALLER}: names must be {parts}, one for each part, got {names!r}")
    return names


def _draw_layer(
    axes: Axes, part: HumanPart, names: Sequence[str], shown: np.ndarray[Any, Any] | None
) -> None:
    height, width = (1.0, 0.5) if shown is None else shown.shape[:2]
    edge = 0.0 if shown is None else 0.5  # pixels have their centers at whole numbers
    if shown is not None:
        axes.imshow(shown, aspect="auto")
    spread = part.log_part_width.exp().item() * height
    centers = part.part_centers.tolist()
    for number, (name, center) in enumerate(zip(names, centers, strict=False)):
        y, color = center * height - edge, COLORS[number % len(COLORS)]
        style = "-" if number < len(COLORS) else "--"
        axes.axhline(y, color=color, linestyle=style, linewidth=2, label=name)
        axes.axhspan(y - spread, y + spread, color=color, alpha=0.15, linewidth=0)
    outside = [
        f"{name} at {center:.2f}"
        for name, center in zip(names, centers, strict=False)
        if not 0 <= center <= 1
    ]
    axes.set_xlabel("\n".join(["outside:", *outside] if outside else []), fontsize=7)
    axes.set(xticks=[], xlim=(-edge, width - edge), ylim=(height - edge, -edge))
    axes.tick_params(labelsize=canvas.SMALLER)
