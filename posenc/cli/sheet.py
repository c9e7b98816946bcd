"""The picture of `posenc look`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from posenc.analysis import CapturedAttention
from posenc.analysis.plot import (
    canvas,
    choose,
    plot_attention,
    plot_bias,
    plot_distance,
    plot_rollout,
)
from posenc.layout import TokenLayout

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Query = int | tuple[int, int]
WIDTH, TALLEST = 10.0, 3.4  # of the picture and of a panel, in inches
MANY = 10  # heads, whose titles would touch each other


def draw(
    image: Tensor,
    captured: CapturedAttention,
    layer: str,
    query: Query,
    pool: str | None,
    title: str,
) -> Figure:
    """Image, rollout and distance; below the attention of a query and, where there is one, bias.

    Args:
        image: `[3, H, W]` from 0 to 1, as the model saw it.
        captured: of one image.
        layer: name of the attention module whose attention and bias are drawn.
        query: (row, column) of a patch, or the index of a prefix token.
        pool: as for `posenc.analysis.attention_rollout`.
        title: of the figure.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    is_whole = layer not in captured.own_grids
    ratio = image.shape[1] / image.shape[2]
    heads = captured.attention[layer].shape[1]
    heights = [min(2.8 * ratio, TALLEST) + 0.9]
    if is_whole:
        heights.append(_attention_height(heads, ratio))
    if layer in captured.bias:
        heights.append(_bias_height(heads, captured.layouts[layer]))

    engine = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.08)
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.4), layout=engine)
    figure.suptitle(title, fontsize=canvas.SMALL + 2)
    rows = list(figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0])
    _draw_top(rows.pop(0), image, captured, layer, query, pool)
    if is_whole:
        size = _patch_size(image, captured.layouts[layer])
        plot_attention(image, captured, query, layer=layer, patch_size=size, figure=rows.pop(0))
    if rows:
        _draw_bias(rows.pop(0), captured, layer, query)
    return figure


def _attention_height(heads: int, ratio: float) -> float:
    """As `plot_attention` arranges its panels."""
    rows, columns = canvas.arrange(heads + 1, ratio)
    return rows * (min((WIDTH - 0.8) / columns * ratio, TALLEST) + 0.75) + 0.4


def _bias_height(heads: int, layout: TokenLayout) -> float:
    return min((WIDTH - 1.2) / heads * layout.height / layout.width, 2.2) + 0.8


def _draw_bias(figure: Any, captured: CapturedAttention, layer: str, query: Query) -> None:
    """Of windows, the mean."""
    index = None if layer in captured.own_grids else 0
    plot_bias(captured, query, layers=layer, image_index=index, figure=figure)
    titled = [axes for axes in figure.axes if axes.get_title().startswith("head ")]
    for axes in titled[1:] if len(titled) > MANY else []:
        axes.set_title(axes.get_title().removeprefix("head "), fontsize=canvas.SMALLER)


def _draw_top(
    figure: Any,
    image: Tensor,
    captured: CapturedAttention,
    layer: str,
    query: Query,
    pool: str | None,
) -> None:
    first, second, third = figure.subplots(1, 3, width_ratios=[1, 1.15, 1.15])
    _draw_image(first, image, captured, layer, query)
    layouts = {captured.layouts[name] for name in captured.attention}
    if captured.own_grids or len(layouts) > 1:
        _say(second, "no rollout:\nlayers see windows, or stages,\nwith grids of their own")
    else:
        (layout,) = layouts
        size = _patch_size(image, layout)
        plot_rollout(image, captured, pool=pool, patch_size=size, ax=second)
        second.images[-1].colorbar.set_label("share of the maximum", fontsize=canvas.SMALL)
        token = layout.prefix and pool is None
        second.set_title(
            f"rollout of {'token 0' if token else 'the mean of patches'}", fontsize=canvas.SMALL
        )
    plot_distance(captured, ax=third)
    third.set_title("how far each head looks", fontsize=canvas.SMALL)


def _draw_image(
    axes: Axes, image: Tensor, captured: CapturedAttention, layer: str, query: Query
) -> None:
    """With the grid of tokens, where they are those of the whole image."""
    height, width = image.shape[1:]
    layout, size = captured.layouts[layer], f"{height}x{width} pixels"
    axes.imshow(image.permute(1, 2, 0).numpy())
    canvas.bare(axes)
    if layer in captured.own_grids:
        says = f"{layer} sees {layout}"
    else:
        lines: dict[str, Any] = {"color": "white", "linewidth": 0.5, "alpha": 0.6}
        for row in range(1, layout.height):
            axes.axhline(row * height / layout.height - 0.5, **lines)
        for column in range(1, layout.width):
            axes.axvline(column * width / layout.width - 0.5, **lines)
        canvas.mark(axes, query, layout, (height, width))
        says = f"query: {choose.says(query)}"
        size += f", tokens {layout}"
    axes.set_title(f"{size}\n{says}", fontsize=canvas.SMALL)


def _say(axes: Axes, words: str) -> None:
    axes.axis("off")
    axes.text(0.5, 0.5, words, ha="center", va="center", fontsize=canvas.SMALL)


def _patch_size(image: Tensor, layout: TokenLayout) -> tuple[float, float]:
    return image.shape[1] / layout.height, image.shape[2] / layout.width
