"""What one query gives to each patch, per layer and head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from posenc.analysis.plot import canvas, choose
from posenc.analysis.positions import bias_layouts, bias_map, position_biases
from posenc.analysis.recorder import CapturedAttention
from posenc.layout import TokenLayout

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

Query = int | tuple[int, int]
CALLER = "plot_bias"


def plot_bias(
    source: nn.Module | CapturedAttention,
    query: Query | None = None,
    *,
    layers: int | str | Sequence[int | str] | None = None,
    heads: int | Sequence[int] | None = None,
    image_index: int | None = 0,
    center: bool = True,
    figure: Figure | SubFigure | None = None,
) -> Figure | SubFigure:
    """Draws the bias that one query gives to each patch: a row a layer, a column a head.

    Each panel is `posenc.analysis.bias_map`, in logits: red attracts, blue repels. Each layer has a
    scale of its own, symmetric around 0, that a strong layer does not bleach the others; the color
    bar at its end tells it. Keys that the query does not see, at minus infinity, are gray. In
    layers with windows the grid is that of a window.

    Args:
        source: a model with static encodings (`posenc.analysis.position_biases`), which needs no
            image; or what `capture_attention` gives, for encodings that depend on images too.
        query: (row, column) of a patch, or the index of a prefix token. Default: the patch in the
            center.
        layers: places in the order of the model, from the end where negative, or names of
            attention modules. Default: all that have a bias.
        heads: places of heads. Default: all.
        image_index: of the image, where biases depend on it; None draws the mean over the images,
            and over windows.
        center: subtract the mean over all keys: biases are defined up to a constant per query.
        figure: an empty one to draw into. Default: a new one.

    Raises:
        ValueError: the model is not patched, or has no bias without images; a layer, a head, an
            image or a query that is not there; a figure that is not empty.
        TypeError: no model and no record, or no query.
        ModuleNotFoundError: matplotlib is not installed.

    Returns:
        The figure.

    >>> import timm, posenc
    >>> from matplotlib.figure import Figure
    >>> vit = timm.create_model("vit_tiny_patch16_224", img_size=(32, 48), depth=2)
    >>> figure = plot_bias(posenc.patch_model(vit, "swin"), query=(1, 0), figure=Figure())
    >>> [axes.get_title() for axes in figure.axes[:3]]
    ['head 0', 'head 1', 'head 2']
    """
    canvas.check_figure(figure, CALLER)
    biases, layouts = _biases(source, layers, image_index)
    queries = {
        name: choose.check_query(choose.center_of(one) if query is None else query, one, CALLER)
        for name, one in layouts.items()
    }
    chosen = {
        name: choose.choose_heads(len(bias), heads, CALLER, name) for name, bias in biases.items()
    }
    maps = {
        name: bias_map(bias[chosen[name]], layouts[name], queries[name], center=center).cpu()
        for name, bias in biases.items()
    }
    figure = _new_figure(figure, maps)
    grid = figure.subplots(len(maps), max(map(len, maps.values())), squeeze=False)
    labels = choose.short_labels(list(maps))
    titled: set[int] = set()
    for row, name, label in zip(grid, maps, labels, strict=True):
        bar = _draw_layer(figure, list(row), maps[name], queries[name], layouts[name])
        if not titled:
            bar.ax.set_title("logits", fontsize=canvas.SMALLER, loc="left")
        row[0].set_ylabel(f"block {label}" if label != name else name, fontsize=canvas.SMALLER)
        for axes, head in zip(row, chosen[name], strict=False):
            if head not in titled:
                axes.set_title(f"head {head}", fontsize=canvas.SMALLER)
        titled.update(chosen[name])
    _explain(figure, list(queries.values()), list(maps.values()))
    return figure


def _biases(
    source: Any, layers: Any, image_index: int | None
) -> tuple[dict[str, Tensor], dict[str, TokenLayout]]:
    """Name of each layer -> `[heads, N, N]`, and its layout."""
    if isinstance(source, nn.Module):
        found, layouts = position_biases(source), bias_layouts(source)
        names = choose.choose_layers(list(found), layers, CALLER)
        return {n: found[n] for n in names}, {n: layouts[n] for n in names}
    captured = choose.check_captured(source, CALLER)
    if not captured.bias:
        raise ValueError(
            f"{CALLER}: no layer that was captured has a bias of posenc: patch the model with an "
            "encoding that adds one inside attention"
        )
    names = choose.choose_layers(list(captured.bias), layers, CALLER)
    biases = {name: _of_image(captured, name, image_index) for name in names}
    return biases, {name: captured.layouts[name] for name in names}


def _of_image(captured: CapturedAttention, name: str, image_index: int | None) -> Tensor:
    """The bias of one image, or the mean, for each head."""
    bias, attention = captured.bias[name], captured.attention[name]
    if bias.shape[1] == 1:
        bias = bias.expand(-1, attention.shape[1], -1, -1)
    if image_index is None:
        return bias.mean(dim=0)
    if len(bias) > 1 and name in captured.own_grids:
        raise ValueError(
            f"{CALLER}: {name} has windows, whose biases differ, in its batch of {len(bias)}: "
            "image_index=None draws their mean"
        )
    if name in captured.own_grids:
        return bias[0]
    place = choose.check_image_index(image_index, len(attention), CALLER)
    return bias[place if len(bias) > 1 else 0]


def _new_figure(figure: Figure | SubFigure | None, maps: dict[str, Tensor]) -> Figure | SubFigure:
    rows, columns = len(maps), max(map(len, maps.values()))
    ratio = max(one.shape[-2] / one.shape[-1] for one in maps.values())
    width, height = canvas.panel_size(rows, columns, ratio)
    return canvas.figure_of(figure, (columns * width + 1.2, rows * (height + 0.06) + 0.65), CALLER)


def _draw_layer(
    figure: Figure | SubFigure,
    row: list[Axes],
    maps: Tensor,
    query: Query,
    layout: TokenLayout,
) -> Any:
    from matplotlib import colormaps

    colors = colormaps["RdBu_r"].with_extremes(bad=canvas.UNSEEN)
    seen = maps.masked_fill(maps == float("-inf"), float("nan"))
    limit = seen.abs().nan_to_num().max().item() or 1.0
    image = None
    for axes, one in zip(row, seen, strict=False):
        image = axes.imshow(one.numpy(), cmap=colors, vmin=-limit, vmax=limit)
        canvas.bare(axes)
        canvas.mark(axes, query, layout)
    for axes in row[len(maps) :]:
        axes.axis("off")
    return canvas.limits_bar(figure, image, row)


def _explain(figure: Figure | SubFigure, queries: list[Query], maps: list[Tensor]) -> None:
    same = len(set(queries)) == 1
    where = choose.says(queries[0]) if same else "the patch in the center"
    figure.suptitle(f"bias that {where} gives to each patch", fontsize=canvas.SMALL + 1)
    if any(bool(torch.isneginf(one).any()) for one in maps):
        figure.supxlabel("gray: patches that it does not see", fontsize=canvas.SMALLER)
