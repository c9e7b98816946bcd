"""Where each head of a layer looks, over the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from posenc.analysis.plot import canvas, choose, picture
from posenc.analysis.positions import query_index
from posenc.analysis.recorder import CapturedAttention

if TYPE_CHECKING:
    import numpy as np
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
    choose.check_captured(captured, CALLER)
    (name,) = choose.choose_layers(list(captured.attention), [layer], CALLER)
    choose.check_whole_image(captured, [name], CALLER)
    layout, weights = captured.layouts[name], captured.attention[name]
    if query is None:
        query = 0 if layout.prefix else choose.center_of(layout)
    query = choose.check_query(query, layout, CALLER)
    chosen = choose.choose_heads(weights.shape[1], heads, CALLER, name)
    index = choose.check_image_index(image_index, len(weights), CALLER)
    shown = picture.to_picture(image, CALLER, mean, std)
    picture.check_fits(shown, layout, patch_size, CALLER)

    row = weights[index, chosen, query_index(query, layout, CALLER)]
    maps = row[:, layout.prefix :].unflatten(-1, layout.grid)
    figure = _panels(figure, shown, len(chosen))
    first, *rest = figure.axes[: len(chosen) + 1]
    first.imshow(shown)
    first.set_title("image", fontsize=canvas.SMALLER)
    for axes, head, one, to_prefix in zip(
        rest, chosen, maps, row[:, : layout.prefix].sum(-1).tolist(), strict=True
    ):
        image_of_map = _draw_head(axes, shown, one)
        title = f"head {head}\nmax {_percent(one.max().item())}"
        title += f"\nprefix {_percent(to_prefix)}" if layout.prefix else ""
        axes.set_title(title, fontsize=canvas.SMALLER)
    for axes in (first, *rest):
        canvas.bare(axes)
        canvas.mark(axes, query, layout, shown.shape[:2])
    bar = figure.colorbar(image_of_map, ax=[first, *rest], shrink=0.6, aspect=25, pad=0.01)
    bar.set_ticks([0, 1], labels=["0", "max"])
    bar.ax.tick_params(labelsize=canvas.SMALLER)
    label = choose.short_labels(list(captured.attention))[list(captured.attention).index(name)]
    figure.suptitle(
        f"attention of {choose.says(query)} in {f'block {label}' if label != name else name}",
        fontsize=canvas.SMALL + 1,
    )
    return figure


def _panels(
    figure: Figure | SubFigure | None, shown: np.ndarray[Any, Any], heads: int
) -> Figure | SubFigure:
    """A figure with axes for the image and for each head."""
    ratio = shown.shape[0] / shown.shape[1]
    rows = -(-(heads + 1) // (6 if ratio < 1.5 else 7))
    columns = -(-(heads + 1) // rows)
    width, height = canvas.panel_size(rows, columns, ratio)
    size = columns * width + 0.7, rows * (height + 0.5) + 0.3
    figure = canvas.figure_of(figure, size, CALLER)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[heads + 1 :]:
        axes.axis("off")
    return figure


def _draw_head(axes: Any, shown: np.ndarray[Any, Any], weights: Tensor) -> Any:
    largest = weights.max().clamp(min=1e-30)  # all may go to prefix tokens
    return picture.overlay(
        axes, shown, weights / largest, cmap="viridis", vmin=0, vmax=1, alpha=0.65
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.995 else "100 %"
