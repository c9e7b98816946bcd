"""Which layers, heads, images and queries are drawn."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from typing import Any

from posenc.analysis.positions import query_index
from posenc.analysis.recorder import CapturedAttention
from posenc.layout import TokenLayout


def check_captured(captured: Any, caller: str) -> CapturedAttention:
    """Raises unless `captured` is a record with something in it."""
    if not isinstance(captured, CapturedAttention):
        raise TypeError(
            f"{caller}: captured must be what posenc.analysis.capture_attention gives, got "
            f"{type(captured).__name__}"
        )
    if not captured.attention:
        raise ValueError(
            f"{caller}: nothing is captured: run images inside "
            "`with capture_attention(model) as captured:`"
        )
    return captured


def choose_layers(names: Sequence[str], layers: Any, caller: str) -> list[str]:
    """The names of these layers, all for None.

    Args:
        names: of all, in order.
        layers: a place in that order, from the end where negative, or a name; or several.
        caller: for messages.
    """
    if layers is None:
        return list(names)
    single = isinstance(layers, str) or not isinstance(layers, Sequence | range)
    chosen = [_layer(names, layer, caller) for layer in ([layers] if single else layers)]
    if not chosen:
        raise ValueError(f"{caller}: layers must name at least one, got {layers!r}")
    return chosen


def _layer(names: Sequence[str], layer: Any, caller: str) -> str:
    if isinstance(layer, str) and layer in names:
        return layer
    place = None if isinstance(layer, str) else _place(layer, len(names))
    if place is None:
        known = f"0 to {len(names) - 1}" if len(names) > 1 else "0"
        raise ValueError(
            f"{caller}: there is no layer {layer!r}: it has {known}, or by name "
            f"{names[0]!r}{f' to {names[-1]!r}' if len(names) > 1 else ''}"
        )
    return names[place]


def choose_heads(count: int, heads: Any, caller: str, layer: str) -> list[int]:
    """The places of these heads, all for None.

    Args:
        count: of the heads that the layer has.
        heads: a place, from the end where negative, or several.
        caller: for messages.
        layer: for messages.
    """
    if heads is None:
        return list(range(count))
    wanted = heads if isinstance(heads, Sequence | range) else [heads]
    places = [_place(head, count) for head in wanted]
    if None in places or not places:
        raise ValueError(
            f"{caller}: heads={heads!r} are not heads of {layer}, which has {count}: 0 to "
            f"{count - 1}"
        )
    return [place for place in places if place is not None]


def check_image_index(image_index: Any, count: int, caller: str) -> int:
    """The place of an image among those that were captured."""
    place = _place(image_index, count)
    if place is None:
        raise ValueError(
            f"{caller}: image_index={image_index!r} is not one of the {count} that were "
            f"captured: 0 to {count - 1}"
        )
    return place


def _place(number: Any, count: int) -> int | None:
    """A non-negative place below `count`, None where there is none."""
    try:
        place = operator.index(number)
    except TypeError:
        return None
    place = place + count if place < 0 else place
    return place if 0 <= place < count and not isinstance(number, bool) else None


def center_of(layout: TokenLayout) -> tuple[int, int]:
    """(row, column) of the patch in the center; of two the later."""
    return layout.height // 2, layout.width // 2


def check_query(query: Any, layout: TokenLayout, caller: str) -> int | tuple[int, int]:
    """(row, column) or the index of a prefix token, as plain numbers."""
    token = query_index(query, layout, caller)
    if token < layout.prefix:
        return token
    return divmod(token - layout.prefix, layout.width)


def says(query: int | tuple[int, int]) -> str:
    """A query in words."""
    if isinstance(query, tuple):
        return f"the patch at ({query[0]}, {query[1]})"
    return f"prefix token {query}"


def short_labels(names: Sequence[str]) -> list[str]:
    """What tells layers apart: the numbers of their names, or else the names."""
    numbers = [".".join(re.findall(r"\d+", name)) for name in names]
    return numbers if all(numbers) and len(set(numbers)) == len(names) else list(names)


def check_whole_image(captured: CapturedAttention, names: Sequence[str], caller: str) -> None:
    """Raises where a layer sees a window or a stage, whose grid does not lie on the image."""
    for name in names:
        if name in captured.own_grids:
            raise ValueError(
                f"{caller}: {name} sees a window, or the grid of a stage "
                f"({captured.layouts[name]}), which does not lie on the image as the patches do: "
                "plot_bias and plot_distance draw such layers"
            )
