"""How alike the positions of patches are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from posenc.analysis.plot import canvas, choose
from posenc.analysis.positions import model_table, position_similarity
from posenc.encodings import LearnedAbsolute, Sinusoidal
from posenc.layout import TokenLayout

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

CALLER = "plot_similarity"
TICKS = 16


def plot_similarity(
    source: nn.Module | Tensor,
    layout: TokenLayout | None = None,
    *,
    queries: Sequence[tuple[int, int]] | None = None,
    center: bool = False,
    figure: Figure | SubFigure | None = None,
) -> Figure | SubFigure:
    """Draws the cosine similarity of the position of each patch to those of all.

    The maps are `posenc.analysis.position_similarity`; colors go from -1 to 1. In the place of each
    patch is its map, as in figure 7 of the ViT paper; with `queries` only theirs, a panel each.

    Args:
        source: a model, of which the table is drawn that its encoding `learned` or `sinusoidal`
            adds, or else its own; such an encoding; or a table as for `position_similarity`.
        layout: of the tokens; a model, and an encoding, know theirs.
        queries: (row, column) of some patches.
        center: subtract the mean over the patches first, that what all vectors share does not
            hide where they differ.
        figure: an empty one to draw into. Default: a new one.

    Raises:
        ValueError: a model without such a table, or with several; a table without its layout; and
            as `position_similarity`; a query that is not in the grid.
        TypeError: neither a model, an encoding nor a table.
        ModuleNotFoundError: matplotlib is not installed.

    Returns:
        The figure.

    Reference: Dosovitskiy et al. 2021, arXiv 2010.11929, figure 7, center.

    >>> import timm
    >>> from matplotlib.figure import Figure
    >>> vit = timm.create_model("vit_tiny_patch16_224", img_size=(32, 48), depth=1)
    >>> figure = plot_similarity(vit, figure=Figure())
    >>> figure.axes[0].images[0].get_array().shape  # 2x3 maps of 2x3 patches
    (4, 9)
    """
    canvas.check_figure(figure, CALLER)
    table, layout = _table(source, layout)
    places = None if queries is None else [_patch(query, layout) for query in queries]
    if places == []:
        raise ValueError(f"{CALLER}: queries must name at least one patch, got {queries!r}")
    maps = position_similarity(table, layout, center=center).cpu()
    if places is None:
        return _draw_all(figure, maps, layout)
    return _draw_some(figure, maps, layout, places)


def _table(source: Any, layout: TokenLayout | None) -> tuple[Any, TokenLayout]:
    """The table, or the encoding that has it, and the layout of its rows."""
    if isinstance(source, LearnedAbsolute | Sinusoidal):
        return source, layout or source.layout
    if isinstance(source, nn.Module):
        table, own = model_table(source, CALLER)
        return table, layout or own
    if isinstance(source, Tensor) and layout is None:
        raise ValueError(f"{CALLER}: pass layout= with a table: its rows do not tell the grid")
    if layout is None:
        raise TypeError(
            f"{CALLER}: source must be a model, an encoding or a table, got {type(source).__name__}"
        )
    return source, layout


def _patch(query: Any, layout: TokenLayout) -> tuple[int, int]:
    place = choose.check_query(query, layout, CALLER)
    if not isinstance(place, tuple):
        raise ValueError(f"{CALLER}: queries must be (row, column) of patches, got {query!r}")
    return place


def _draw_all(
    figure: Figure | SubFigure | None, maps: Tensor, layout: TokenLayout
) -> Figure | SubFigure:
    """One image with lines between maps: axes for each patch would take seconds."""
    height, width = layout.grid
    mosaic = maps.transpose(1, 2).flatten(0, 1).flatten(1)
    ratio = mosaic.shape[0] / mosaic.shape[1]
    side = min(5.5, 7.5 / ratio)
    size = side + 1.4, side * ratio + 0.6
    figure = canvas.figure_of(figure, size, CALLER)
    axes = figure.subplots()
    image = _show(axes, mosaic)
    for side, count, set_ticks in (
        (height, height, axes.set_yticks),
        (width, width, axes.set_xticks),
    ):
        shown = range(0, count, -(-count // TICKS))
        set_ticks([n * side + (side - 1) / 2 for n in shown], map(str, shown))
    for row in range(1, height):
        axes.axhline(row * height - 0.5, color="white", linewidth=2)
    for column in range(1, width):
        axes.axvline(column * width - 0.5, color="white", linewidth=2)
    axes.tick_params(length=0, labelsize=canvas.SMALLER)
    axes.set_xlabel("column of the patch", fontsize=canvas.SMALL)
    axes.set_ylabel("row of the patch", fontsize=canvas.SMALL)
    axes.spines[:].set_visible(False)
    _add_bar(figure, image, [axes])
    return figure


def _draw_some(
    figure: Figure | SubFigure | None,
    maps: Tensor,
    layout: TokenLayout,
    places: list[tuple[int, int]],
) -> Figure | SubFigure:
    width, height = canvas.panel_size(1, len(places), layout.height / layout.width)
    figure = canvas.figure_of(figure, (len(places) * width + 1, height + 0.5), CALLER)
    grid = figure.subplots(1, len(places), squeeze=False)[0]
    for axes, (row, column) in zip(grid, places, strict=True):
        image = _show(axes, maps[row, column])
        canvas.bare(axes)
        canvas.mark(axes, (row, column), layout)
        axes.set_title(f"({row}, {column})", fontsize=canvas.SMALLER)
    _add_bar(figure, image, list(grid))
    return figure


def _show(axes: Axes, numbers: Tensor) -> Any:
    return axes.imshow(numbers.numpy(), cmap="viridis", vmin=-1, vmax=1, interpolation="nearest")


def _add_bar(figure: Figure | SubFigure, image: Any, axes: list[Axes]) -> None:
    bar = figure.colorbar(image, ax=axes, shrink=0.7, aspect=25, pad=0.02, ticks=[-1, 0, 1])
    bar.set_label("cosine", fontsize=canvas.SMALL)
    bar.ax.tick_params(labelsize=canvas.SMALLER)
