"""Where each head of a layer looks, over the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from posenc.analysis.plot import canvas, choose, picture
from posenc.analysis.positions import query_index
from posenc.analysis.recorder import CapturedAttention
from posenc.encodings.base import is_finite
from posenc.layout import TokenLayout

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

CALLER = "plot_attention"


def plot_attention(
    image: Any,
    captured: CapturedAttention,
    query: int | tuple[int, int] | None = None,
    *,
    layer: int | str = -1,
    heads: int | Sequence[int] | None = None,
    image_index: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    patch_size: float | tuple[float, float] | None = None,
    figure: Figure | SubFigure | None = None,
) -> Figure | SubFigure:
    """Draws the image, then over it what one query gives to each patch, a panel a head.

    Heads differ in how sharp they are, so each has a scale of its own, from 0 to its largest
    weight, which its title tells, and with prefix tokens also what they get.

    Args:
        image: as the model saw it: a tensor `[3, H, W]`, an array `[H, W, 3]` or a PIL image, 0 to
            255 in uint8, or 0 to 1.
        captured: what `posenc.analysis.capture_attention` gave.
        query: (row, column) of a patch, or the index of a prefix token. Default: token 0 (CLS)
            where there are prefix tokens, else the patch in the center.
        layer: its place in `captured.attention`, from the end where negative, or its name.
        heads: places of heads. Default: all.
        image_index: of the image among those that were captured.
        mean: of the channels, of an image that is normalized by it and by `std`.
        std: of the channels.
        patch_size: (height, width), where patches are not square.
        figure: an empty one to draw into. Default: a new one.

    Raises:
        ValueError: a layer, a head, an image or a query that is not there; an image that the grid
            does not fit, or that is normalized; a layer of windows, whose grids do not lie on the
            image as patches do; a figure that is not empty.
        TypeError: no image, no record or no query.
        ModuleNotFoundError: matplotlib is not installed.

    Returns:
        The figure.
    """
    canvas.check_figure(figure, CALLER)
    seen = _look(captured, query, layer, heads, image_index)
    shown = picture.to_picture(image, CALLER, mean, std)
    picture.check_fits(shown, seen.layout, patch_size, CALLER)

    figure = _panels(figure, shown, len(seen.heads))
    first, *rest = panels = figure.axes[: len(seen.heads) + 1]
    first.imshow(shown)
    first.set_title("image", fontsize=canvas.SMALLER)
    for axes, head, weights in zip(rest, seen.heads, seen.weights, strict=True):
        drawn = _draw_head(axes, shown, weights, seen.layout)
        axes.set_title(f"head {head}\n{axes.get_title()}", fontsize=canvas.SMALLER)
    for axes in panels:
        canvas.bare(axes)
        canvas.mark(axes, seen.query, seen.layout, shown.shape[:2])
    bar = figure.colorbar(drawn, ax=panels, shrink=0.6, aspect=25, pad=0.01)
    bar.set_ticks([0, 1], labels=["0", "max"])
    bar.ax.tick_params(labelsize=canvas.SMALLER)
    title = f"attention of {choose.says(seen.query)} in {seen.where}"
    figure.suptitle(title, fontsize=canvas.SMALL + 1)
    return figure


class _Seen(NamedTuple):
    """What is drawn: of each of these heads, the weights `[heads, N]` of the query."""

    where: str
    layout: TokenLayout
    query: int | tuple[int, int]
    heads: list[int]
    weights: Tensor


def _look(captured: Any, query: Any, layer: Any, heads: Any, image_index: Any) -> _Seen:
    """Raises for what is not there."""
    choose.check_captured(captured, CALLER)
    names = list(captured.attention)
    (name,) = choose.choose_layers(names, [layer], CALLER)
    choose.check_whole_image(captured, [name], CALLER)
    layout, weights = captured.layouts[name], captured.attention[name]
    if query is None:
        query = 0 if layout.prefix else choose.center_of(layout)
    query = choose.check_query(query, layout, CALLER)
    chosen = choose.choose_heads(weights.shape[1], heads, CALLER, name)
    index = choose.check_image_index(image_index, len(weights), CALLER)
    row = weights[index, chosen, query_index(query, layout, CALLER)]
    if not is_finite(row):
        raise ValueError(
            f"{CALLER}: the attention of {name} has values that are not finite: the model, or what "
            "it was given, is damaged"
        )
    label = choose.short_labels(names)[names.index(name)]
    return _Seen(f"block {label}" if label != name else name, layout, query, chosen, row)


def _panels(
    figure: Figure | SubFigure | None, shown: np.ndarray[Any, Any], heads: int
) -> Figure | SubFigure:
    """A figure with axes for the image and for each head."""
    ratio = shown.shape[0] / shown.shape[1]
    rows, columns = canvas.arrange(heads + 1, ratio)
    width, height = canvas.panel_size(rows, columns, ratio)
    size = columns * width + 0.7, rows * (height + 0.5) + 0.3
    figure = canvas.figure_of(figure, size, CALLER)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[heads + 1 :]:
        axes.axis("off")
    return figure


def _draw_head(
    axes: Axes, shown: np.ndarray[Any, Any], weights: Tensor, layout: TokenLayout
) -> Any:
    """Its title tells the scale, and what prefix tokens get."""
    prefix, patches = weights[: layout.prefix], weights[layout.prefix :].unflatten(0, layout.grid)
    title = f"max {_percent(patches.max().item())}"
    title += f"\nprefix {_percent(prefix.sum().item())}" if layout.prefix else ""
    axes.set_title(title)
    largest = patches.max().clamp(min=1e-30)  # all may go to prefix tokens
    return picture.overlay(
        axes, shown, patches / largest, cmap="viridis", vmin=0, vmax=1, alpha=0.65
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.995 else "100 %"
