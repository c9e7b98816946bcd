"""What matplotlib was told to draw."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure


def axes() -> Axes:
    """Of a figure that pyplot does not keep."""
    return Figure().subplots()


def panels(figure):
    """Those that are shown, in order, without color bars."""
    return [ax for ax in figure.axes if ax.axison and not hasattr(ax, "_colorbar")]


def bars(figure):
    return [ax for ax in figure.axes if hasattr(ax, "_colorbar")]


def numbers(ax, layer=-1):
    """Of an image, nan where it is masked."""
    return np.ma.filled(ax.images[layer].get_array(), np.nan)


def marked(ax):
    """(row, column) and (height, width) of the frame around the query, in the units of the axes."""
    (frame,) = [patch for patch in ax.patches if patch.get_gid() == "query"]
    corner = frame.get_y() + 0.5, frame.get_x() + 0.5
    return corner, (frame.get_height(), frame.get_width())
