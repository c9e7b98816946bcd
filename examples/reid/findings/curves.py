"""How often the right person is among the first: the CMC curve."""

from __future__ import annotations

from typing import Any

from matplotlib import pyplot as plt
from search.retrieval import Scores


def draw_cmc(scores: Scores, name: str = "") -> Any:
    """Over all ranks that were scored."""
    figure, axis = plt.subplots(figsize=(5, 3.6), layout="constrained")
    ranks = range(1, len(scores.cmc) + 1)
    axis.plot(ranks, 100 * scores.cmc.cpu(), marker=".")
    axis.set(
        xlabel="rank",
        ylabel="queries with a match up to this rank, in %",
        ylim=(0, 102),
        title=f"{name}: mAP {100 * scores.mean_average_precision:.1f}, "
        f"rank-1 {100 * scores.rank(1):.1f}",
    )
    axis.grid(alpha=0.3)
    return figure
