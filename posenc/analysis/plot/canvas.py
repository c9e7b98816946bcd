"""Figures, axes and marks: all that the pictures share of matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from posenc.layout import TokenLayout

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

SMALL, SMALLER = 9, 8  # of letters, in points: legible where 100 dots are an inch
UNSEEN = "0.6"  # gray, which no color map here has


def pyplot(caller: str) -> Any:
    """matplotlib.pyplot.

    Raises:
        ModuleNotFoundError: matplotlib is not installed, with what to do.
    """
    try:
        from matplotlib import pyplot
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError(
            f'{caller} draws with matplotlib, which is not installed: pip install "posenc[viz]"'
        ) from missing
    return pyplot


def check_figure(figure: Any, caller: str) -> None:
    """Raises unless `figure` is None, or a figure that is empty."""
    pyplot(caller)
    from matplotlib.figure import Figure, SubFigure

    if figure is None:
        return
    if not isinstance(figure, Figure | SubFigure):
        raise TypeError(
            f"{caller}: figure must be a matplotlib Figure or SubFigure, got "
            f"{type(figure).__name__}"
        )
    if figure.axes:
        raise ValueError(
            f"{caller}: figure must be empty, it has {len(figure.axes)} axes: pass a new one, or "
            "one of figure.subfigures(...)"
        )


def check_axes(ax: Any, caller: str) -> None:
    """Raises unless `ax` is None or axes."""
    pyplot(caller)
    from matplotlib.axes import Axes

    if ax is not None and not isinstance(ax, Axes):
        raise TypeError(f"{caller}: ax must be a matplotlib Axes, got {type(ax).__name__}")


def figure_of(
    figure: Figure | SubFigure | None, size: tuple[float, float], caller: str
) -> Figure | SubFigure:
    """The figure that was passed, or a new one of this size in inches."""
    if figure is not None:
        return figure
    new: Figure = pyplot(caller).figure(figsize=size, layout="compressed")
    return new


def axes_of(ax: Axes | None, size: tuple[float, float], caller: str) -> Axes:
    """The axes that were passed, or those of a new figure of this size in inches."""
    return figure_of(None, size, caller).subplots() if ax is None else ax


def arrange(panels: int, ratio: float) -> tuple[int, int]:
    """How many rows and columns: up to 6 panels in a row, 7 where height by width is large."""
    rows = -(-panels // (6 if ratio < 1.5 else 7))
    return rows, -(-panels // rows)


def panel_size(
    rows: int, columns: int, ratio: float, *, largest: float = 2.2
) -> tuple[float, float]:
    """Width and height of a panel in inches, so that a figure is some 800 pixels wide.

    Args:
        rows: of panels.
        columns: of panels.
        ratio: height of a panel by its width.
        largest: width.
    """
    width = max(0.55, min(largest, 6.6 / columns, 11 / (rows * ratio)))
    return width, width * ratio


def bare(axes: Axes) -> None:
    """No ticks."""
    axes.set(xticks=[], yticks=[])


def mark(
    axes: Axes,
    query: int | tuple[int, int],
    layout: TokenLayout,
    size: tuple[float, float] | None = None,
) -> None:
    """A frame around the patch of a query; nothing for a prefix token.

    Args:
        axes: with one unit a patch, or with an image.
        query: (row, column) of a patch, or a prefix token.
        layout: of the tokens.
        size: height and width of the image, where there is one.
    """
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    if not isinstance(query, tuple | list):
        return
    height, width = (
        (1.0, 1.0) if size is None else (size[0] / layout.height, size[1] / layout.width)
    )
    corner = query[1] * width - 0.5, query[0] * height - 0.5
    frame = Rectangle(corner, width, height, fill=False, linewidth=1.0, edgecolor="black")
    frame.set_path_effects([withStroke(linewidth=2.2, foreground="white")])
    frame.set_gid("query")
    axes.add_patch(frame)


def limits_bar(figure: Figure | SubFigure, image: Any, axes: list[Axes]) -> Any:
    """A color bar beside a row of axes, with its ends and its middle."""
    bar = figure.colorbar(image, ax=axes, aspect=10, fraction=0.06, pad=0.01)
    low, high = image.get_clim()
    ticks = [low, (low + high) / 2, high]
    bar.set_ticks(ticks, labels=[f"{tick:.2g}".replace("-", "\N{MINUS SIGN}") for tick in ticks])
    bar.ax.tick_params(labelsize=SMALLER, length=2)
    return bar
