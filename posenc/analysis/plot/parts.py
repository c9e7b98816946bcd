"""Where the body parts of `human_part` and `body` are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from posenc.analysis.plot import canvas, choose, picture
from posenc.encodings import Body, HumanPart
from posenc.functional.body import BodyFrame, ordered_centers
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

Parts = Body | HumanPart


def plot_parts(
    model: nn.Module,
    background: Any = None,
    *,
    image: Tensor | None = None,
    names: Sequence[str] | None = None,
    figure: Figure | SubFigure | None = None,
) -> Figure | SubFigure:
    r"""Draws the centers of the parts of each `body` and `human_part`, and the width of a part.

    A panel an encoding: a line is a center, the band around it goes one `t` up and down. The title
    tells how strong the parts are: the mean over heads of `|strength|`, or the root mean square of
    the vectors of `body`; at 0 they have no effect.

    The parts of an encoding with `adaptive=True` are others in each image. They are drawn "in the
    image" where there is one, else "at rest", where the body is the whole crop; the title says
    which. Centers outside of a crop that cuts the body off are named below the panel.

    Args:
        model: patched with `body`, `human_part` or both. With `image` it has to be in eval mode.
        background: an image of a crop, of any size, such as the mean of many, as for
            `plot_attention`; heights are then in its pixels. Default: none, heights in crops.
        image: one image as the model receives it, `[1, channels, height, width]`, which runs
            through the model if parts are adaptive; others do not depend on it. An encoding that
            blocks share is drawn as the last of them uses it.
        names: of the parts, as many as the encoding with most of them has. Default: what the five
            parts start as, or numbers.
        figure: an empty one to draw into. Default: a new one.

    Raises:
        ValueError: the model is not patched, or with neither of these; another number of names;
            several images, or one for a model in train mode.
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
    most = max(part.parts for part in found.values())
    names = _names(names, most)
    shown = None if background is None else picture.to_picture(background, CALLER)
    frames = {} if image is None else _frames(model, found, image)

    ratio = 2.0 if shown is None else shown.shape[0] / shown.shape[1]
    width, height = canvas.panel_size(1, len(found), ratio, largest=1.8)
    figure = canvas.figure_of(figure, (len(found) * width + 1.5, height + 1.0), CALLER)
    grid = figure.subplots(1, len(found), squeeze=False, sharey=True)[0]
    labels = _labels(found)
    for axes, (name, part) in zip(grid, found.items(), strict=True):
        _draw_layer(axes, part, frames.get(name), names, shown)
        lines = [labels[name], _strength(part)]
        if part.adaptive:
            lines.append("in the image" if name in frames else "at rest")
        axes.set_title("\n".join(lines), fontsize=canvas.SMALLER)
    unit = "crops" if shown is None else "pixels"
    grid[0].set_ylabel(f"height ({unit})", fontsize=canvas.SMALLER)
    handles, texts = max(
        (axes.get_legend_handles_labels() for axes in grid), key=lambda h: len(h[0])
    )
    figure.legend(handles, texts, loc="outside right upper", title="started as", fontsize=8)
    return figure


def _parts_of(model: Any) -> dict[str, Parts]:
    """Name of each encoding -> the encoding, as tokens meet them."""
    patched_backbone(model)  # raises where nothing is patched
    known = patched_encodings(model)
    found = {n: one for kind in (Body, HumanPart) for n, one in known.items() if type(one) is kind}
    if not found:
        has = ", ".join(sorted({name.rpartition(".")[2] for name in known}))
        raise ValueError(
            f'{CALLER}: the model has no encoding "body" or "human_part", it is patched with '
            f"{has or 'none'}"
        )
    return found


def _frames(model: nn.Module, found: dict[str, Parts], image: Any) -> dict[str, BodyFrame]:
    """Name of each adaptive encoding -> where the body of this image is."""
    adaptive = {name: part for name, part in found.items() if part.adaptive}
    if not adaptive:
        return {}
    _check_image(model, image)
    frames: dict[str, BodyFrame] = {}

    def watch(name: str) -> Any:
        def see(part: Any, args: tuple[Any, ...]) -> None:
            *tokens, layout = args  # x, or q and k
            if len(tokens[-1]) != 1:
                raise ValueError(
                    f"{CALLER}: {name} sees {len(tokens[-1])} windows of the image, each with a "
                    "body of its own; leave image= out"
                )
            frames[name] = part.body_frame(tokens[-1], layout)

        return see

    hooks = [part.register_forward_pre_hook(watch(name)) for name, part in adaptive.items()]
    try:
        with torch.no_grad():
            model(image)
    finally:
        for hook in hooks:
            hook.remove()
    return frames


def _check_image(model: nn.Module, image: Any) -> None:
    if not isinstance(image, Tensor):
        raise TypeError(
            f"{CALLER}: image must be a tensor as the model receives it, got {type(image).__name__}"
        )
    if image.dim() != 4 or len(image) != 1:
        raise ValueError(
            f"{CALLER}: image must be one image [1, channels, height, width], got "
            f"{list(image.shape)}; pass images[i : i + 1]"
        )
    if model.training:
        raise ValueError(f"{CALLER}: the model is in train mode; call model.eval() first")


def _labels(found: dict[str, Parts]) -> dict[str, str]:
    """The number of the block of each encoding inside attention; else the name."""
    inside = [name for name, part in found.items() if isinstance(part, HumanPart)]
    numbers = dict(zip(inside, choose.short_labels(inside), strict=True))
    return {n: f"block {numbers[n]}" if numbers.get(n, n) != n else n for n in found}


def _strength(part: Parts) -> str:
    if isinstance(part, Body):
        return f"vectors {part.part_embedding.detach().square().mean().sqrt().item():.2f}"
    return f"strength {part.strength.detach().abs().mean().item():.2f}"


def _names(names: Sequence[str] | None, parts: int) -> Sequence[str]:
    if names is None:
        return FIVE if parts == len(FIVE) else [f"part {number}" for number in range(parts)]
    if isinstance(names, str) or len(names) != parts:
        raise ValueError(f"{CALLER}: names must be {parts}, one for each part, got {names!r}")
    return names


def _draw_layer(
    axes: Axes,
    part: Parts,
    frame: BodyFrame | None,
    names: Sequence[str],
    shown: np.ndarray[Any, Any] | None,
) -> None:
    height, width = (1.0, 0.5) if shown is None else shown.shape[:2]
    edge = 0.0 if shown is None else 0.5  # pixels have their centers at whole numbers
    if shown is not None:
        axes.imshow(shown, aspect="auto")
    centers, spread = _in_crop(part, frame)
    for number, (name, center) in enumerate(zip(names, centers, strict=False)):
        y, color = center * height - edge, COLORS[number % len(COLORS)]
        style = "-" if number < len(COLORS) else "--"
        axes.axhline(y, color=color, linestyle=style, linewidth=2, label=name)
        axes.axhspan(y - spread * height, y + spread * height, color=color, alpha=0.15, linewidth=0)
    outside = [
        f"{name} at {center:.2f}"
        for name, center in zip(names, centers, strict=False)
        if not 0 <= center <= 1
    ]
    axes.set_xlabel("\n".join(["outside:", *outside] if outside else []), fontsize=7)
    axes.set(xticks=[], xlim=(-edge, width - edge), ylim=(height - edge, -edge))
    axes.tick_params(labelsize=canvas.SMALLER)


def _in_crop(part: Parts, frame: BodyFrame | None) -> tuple[list[float], float]:
    """Centers from the top of the crop and the width of a part, in crops."""
    centers = ordered_centers(part.part_spacing.detach().float().cpu())
    spread: float = part.log_part_width.detach().exp().item()
    if frame is None:
        return centers.tolist(), spread
    frame = BodyFrame(*(number.float().cpu()[0] for number in frame))
    return (frame.to_crop(centers - 0.5) + 0.5).tolist(), spread / frame.zoom.item()
