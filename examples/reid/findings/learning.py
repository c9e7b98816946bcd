"""How losses, scores and learning rate went: read from what a training logs for TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

LOGS = "reid"  # the folder of a training's logs, beside its weights
SCORES = {"mAP": "-", "rank-1": "--"}
RATE, WAITING = "rate", "waiting"
Curves = dict[str, dict[int, float]]  # name -> epoch -> value


def read_curves(run: Path) -> Curves:
    """Empty where a training logs nothing, or elsewhere; of an epoch logged twice, the last."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not list((run / LOGS).glob("events.out.tfevents.*")):
        return {}
    logs = EventAccumulator(str(run / LOGS), size_guidance={"scalars": 0, "images": 1})
    logs.Reload()
    names = logs.Tags()["scalars"]
    return {name: {one.step: one.value for one in logs.Scalars(name)} for name in names}


def draw_curves(curves: Curves) -> Any:
    """Losses, scores and the learning rate, a panel each."""
    figure, panels = plt.subplots(1, 3, figsize=(10.5, 3.4), sharex=True, layout="constrained")
    losses = [name for name in curves if name not in {*SCORES, RATE, WAITING}]
    for number, name in enumerate(sorted(losses, key=lambda name: (name != "loss", name))):
        line = ("-", "--", ":", "-.")[number % 4]
        _plot(panels[0], curves[name], line, "sum" if name == "loss" else name)
    for name, line in SCORES.items():
        if name in curves:
            _plot(panels[1], curves[name], line, name, 100)
    if RATE in curves:
        _plot(panels[2], curves[RATE], "-", "")
    titles = "losses, mean of an epoch", "scores, in %", "learning rate after the epoch"
    for panel, title in zip(panels, titles, strict=True):
        panel.set(title=title, xlabel="epoch")
        if panel.lines:
            panel.set_ylim(0, 1.08 * panel.dataLim.y1)
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.grid(alpha=0.3)
        if panel.get_legend_handles_labels()[0]:
            panel.legend(fontsize=8)
    return figure


def _plot(panel: Any, curve: dict[int, float], line: str, label: str, scale: float = 1) -> None:
    values = [scale * value for value in curve.values()]
    panel.plot(list(curve), values, line, marker=".", label=label)
