"""Three figures: accuracy against size, rankings with intervals, cost against accuracy."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot as plt

from which.measures import MEASURES, Measure, Standing, standings
from which.results import Job, Records

matplotlib.use("agg")

SIZES = {"1x": 1.0, "1.5x": 1.5, "2x": 2.0, "3x": 3.0, "4.57x": 64 / 14}
FAMILIES = {  # color -> encodings of one kind, each with a line of its own
    "black": ("none",),
    "tab:blue": ("learned", "sinusoidal", "peg"),
    "tab:red": ("rope", "rope(dinov3)", "rope_mixed", "liere"),
    "tab:green": ("swin", "cpb", "irpe", "decomposed"),
    "tab:orange": ("alibi_2d", "fire_2d", "lookhere", "quadratic"),
    "tab:purple": ("convit", "pape"),
}
LINES = ("-", "--", "-.", ":")
PANELS = 3  # columns of the ranking


def style(encoding: str) -> dict[str, Any]:
    """Color and line of an encoding, the same in all figures."""
    for color, names in FAMILIES.items():
        if encoding in names:
            return {"color": color, "linestyle": LINES[names.index(encoding)]}
    return {"color": "tab:gray", "linestyle": "-"}


def draw_sizes(records: Records, path: Path) -> None:
    """A panel for each readout, a line for each encoding."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 5.4), sharey=True, layout="constrained")
    for panel, readout in zip(panels, ("CLS", "mean"), strict=True):
        found = {
            name: standings(records, Measure(name, "alone", (readout,), (name,))) for name in SIZES
        }
        for encoding in dict.fromkeys(e for standing in found.values() for e in standing):
            sizes = [name for name in SIZES if encoding in found[name]]
            means = [found[name][encoding].mean for name in sizes]
            places = [SIZES[name] for name in sizes]
            panel.plot(places, means, marker=".", label=encoding, **style(encoding))
        panel.set_xscale("log")
        panel.set_xticks(list(SIZES.values()), list(SIZES))
        panel.minorticks_off()
        panel.set(title=f"{readout} token", xlabel="side of the test images, to that of training")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("test images classified correctly, in %")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=9, handlelength=3)
    _save(figure, path)


def draw_rankings(records: Records, path: Path) -> None:
    """A panel for each measure: means and 95 % intervals, the best at the top."""
    found = {name: standings(records, measure) for name, measure in MEASURES.items()}
    found = {name: standing for name, standing in found.items() if standing}
    rows = math.ceil(len(found) / PANELS)
    size = (11, 4.1 * rows)
    figure, panels = plt.subplots(rows, PANELS, figsize=size, squeeze=False, layout="constrained")
    for panel in panels.flat[len(found) :]:
        panel.set_axis_off()
    for panel, (name, standing) in zip(panels.flat, found.items(), strict=False):
        _draw_ranking(panel, standing)
        panel.set_title(name)
    figure.supxlabel("test images classified correctly, in %; filled: may be the best")
    _save(figure, path)


def _draw_ranking(panel: Any, standing: dict[str, Standing]) -> None:
    for place, (encoding, one) in enumerate(standing.items()):
        color = style(encoding)["color"]
        panel.plot([one.low, one.high], [-place] * 2, color=color, linewidth=1.5)
        face = color if one.may_be_best else "white"
        panel.plot(one.mean, -place, "o", color=color, markerfacecolor=face, markersize=5)
    panel.set_yticks([-place for place in range(len(standing))], list(standing), fontsize=8)
    panel.grid(alpha=0.3)


def draw_costs(records: Records, path: Path) -> None:
    """A dot for each encoding: time of a training step, and accuracy over both readouts."""
    accuracy = standings(records, Measure("as trained", "alone", ("CLS", "mean"), ("1x",)))
    figure, panel = plt.subplots(figsize=(8, 5.4), layout="constrained")
    for encoding, one in accuracy.items():
        record = records.get(Job("cost", encoding))
        if record is None:
            continue
        time = record["training"]["median"]
        color = style(encoding)["color"]
        panel.plot([time] * 2, [one.low, one.high], color=color, linewidth=1, alpha=0.6)
        panel.plot(time, one.mean, "o", color=color, markersize=5)
        panel.annotate(
            encoding, (time, one.mean), (5, 3), textcoords="offset points", fontsize=8, color=color
        )
    panel.set(
        xlabel="time of forward and backward, to the model without positions",
        ylabel="test images classified correctly, in %, mean of both readouts",
    )
    panel.grid(alpha=0.3)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=120, facecolor="white")
    plt.close(figure)
