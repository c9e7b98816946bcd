"""The ratios of a report as a picture."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from posenc.bench.table import Row, backend_text

COLORS = {"ours": "tab:blue", "peer": "tab:orange"}


def draw(rows: list[Row], title: str, out: Path) -> None:
    """One panel per shape, a dot with its quartiles per encoding and backend, plain SDPA at 1."""
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    lines = list(dict.fromkeys((row["case"], row["backend"]) for row in rows))
    size = 2.5 + 2.6 * len(shapes), 1.3 + 0.32 * len(lines)
    figure = Figure(figsize=size, layout="constrained")
    # One axis of ratios, to compare the panels.
    panels = figure.subplots(1, len(shapes), sharex=True, sharey=True, squeeze=False)
    for panel, shape in zip(panels[0], shapes, strict=True):
        of_shape = [row for row in rows if row["shape"] == shape]
        for row in of_shape:
            _draw_row(panel, row, lines.index((row["case"], row["backend"])))
        panel.axvline(1, color="black", linewidth=1, linestyle="--")
        panel.set_title(f"{shape}\n{of_shape[0]['layout']}", fontsize=9)
        panel.grid(axis="x", alpha=0.3)
        panel.tick_params(axis="y", length=0)
    _scale(panels[0][0], rows)
    panels[0][0].set_yticks(range(len(lines)), [_label(rows, line) for line in lines], fontsize=9)
    panels[0][0].invert_yaxis()
    figure.suptitle(title, fontsize=10)
    figure.supxlabel("time over plain SDPA (dashed), median and quartiles", fontsize=9)
    figure.savefig(out, dpi=150)


def _scale(panel: Axes, rows: list[Row]) -> None:
    """Logarithmic, so that half and double look alike; it starts at 1 unless some are faster."""
    measured = [row for row in rows if row["median"] is not None]
    low = min([1.0, *(row["low"] for row in measured)])
    high = max([2.0, *(row["high"] for row in measured)])
    panel.set_xscale("log", base=2)
    panel.set_xlim(0.9 * low, 2.5 * high)  # room for the dashed line and the numbers
    panel.xaxis.set_major_formatter("{x:g}")


def _draw_row(panel: Axes, row: Row, place: int) -> None:
    color = COLORS["peer" if row["backend"] == "peer" else "ours"]
    if row["median"] is None:
        panel.text(1.05, place, row["failure"], color="gray", fontsize=7, va="center")
        return
    spread = [[row["median"] - row["low"]], [row["high"] - row["median"]]]
    panel.errorbar(row["median"], place, xerr=spread, fmt="o", markersize=4, color=color, capsize=2)
    panel.annotate(
        f"{row['median']:.2f}",
        (row["high"], place),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        fontsize=7,
    )


def _label(rows: list[Row], line: tuple[str, str]) -> str:
    case, backend = line
    if backend == "peer":
        return case
    of_line = [row for row in rows if (row["case"], row["backend"]) == line]
    backend = backend_text(of_line)
    return f"{case}, {backend}" if len(case + backend) < 45 else f"{case},\n{backend}"
