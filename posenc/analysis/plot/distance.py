"""How far heads look, against depth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from posenc.analysis.distance import mean_attention_distance
from posenc.analysis.plot import canvas, choose
from posenc.analysis.recorder import CapturedAttention

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CALLER = "plot_distance"
HEADS, MEAN = "#0072B2", "#D55E00"  # blue and vermilion, of Okabe and Ito
TICKS = 16
PatchSize = float | tuple[float, float]


def plot_distance(
    captured: CapturedAttention,
    *,
    patch_size: PatchSize | Mapping[str, PatchSize] | None = None,
    renormalize: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Draws the mean attention distance of each head against depth, as figure 7 of the ViT paper.

    A dot is a head, `posenc.analysis.mean_attention_distance`, in the mean over the images (and
    over windows); the line is the mean of the heads. A dotted line is the distance of attention
    that is the same everywhere, where all layers see one grid.

    Args:
        captured: what `posenc.analysis.capture_attention` gave.
        patch_size: of a patch in pixels, one number or (height, width), for distances in pixels;
            in models with stages by name of the attention module. Default: distances in patches.
        renormalize: as for `mean_attention_distance`.
        ax: to draw into. Default: those of a new figure.

    Raises:
        ValueError: nothing is captured, a patch size that is not positive, one patch size for a
            model with windows or stages, or none for one of its layers.
        TypeError: no record.
        ModuleNotFoundError: matplotlib is not installed.

    Returns:
        The axes.

    Reference: Dosovitskiy et al. 2021, arXiv 2010.11929, figure 7, right.
    """
    canvas.check_axes(ax, CALLER)
    choose.check_captured(captured, CALLER)
    sizes = _patch_sizes(captured, patch_size)
    heads = [
        mean_attention_distance(
            weights, captured.layouts[name], patch_size=sizes[name], renormalize=renormalize
        )
        .nanmean(dim=0)
        .cpu()
        for name, weights in captured.attention.items()
    ]

    ax = canvas.axes_of(ax, (5.2, 3.6), CALLER)
    for depth, distances in enumerate(heads):
        ax.plot(
            [depth] * len(distances), distances.tolist(), "o", color=HEADS, alpha=0.75, markersize=5
        )
    ax.lines[-1].set_label("a head")
    means = [distances.nanmean().item() for distances in heads]
    ax.plot(range(len(heads)), means, color=MEAN, linewidth=1.8, label="mean of the heads")
    kinds = {(captured.layouts[name], sizes[name]) for name in captured.attention}
    if len(kinds) == 1:
        _draw_uniform(ax, *kinds.pop())
    _label(ax, list(captured.attention), _unit(captured, patch_size))
    return ax


def _patch_sizes(captured: CapturedAttention, patch_size: Any) -> dict[str, PatchSize]:
    names = list(captured.attention)
    if patch_size is None:
        return dict.fromkeys(names, 1.0)
    if isinstance(patch_size, Mapping):
        for name in names:
            if name not in patch_size:
                raise ValueError(f"{CALLER}: patch_size has no entry for {name}")
        return {name: _hashable(patch_size[name]) for name in names}
    if captured.own_grids:
        raise ValueError(
            f"{CALLER}: the model has windows or stages, whose patches may differ: pass "
            "patch_size={name: size} for each attention module, or none for distances in patches"
        )
    return dict.fromkeys(names, _hashable(patch_size))


def _hashable(size: Any) -> Any:
    return tuple(size) if isinstance(size, list) else size


def _draw_uniform(ax: Axes, layout: Any, size: PatchSize) -> None:
    tokens = layout.num_tokens
    uniform = mean_attention_distance(torch.ones(1, 1, tokens, tokens), layout, patch_size=size)
    ax.axhline(
        uniform.item(), color="0.35", linestyle=":", linewidth=1.4, label="uniform attention"
    )


def _unit(captured: CapturedAttention, patch_size: Any) -> str:
    if patch_size is not None:
        return "pixels"
    return "patches of each block" if captured.own_grids else "patches"


def _label(ax: Axes, names: list[str], unit: str) -> None:
    step = -(-len(names) // TICKS)
    labels = choose.short_labels(names)
    is_long = max(map(len, labels)) > 3
    ax.set_xticks(range(0, len(names), step), labels[::step], rotation=90 if is_long else 0)
    ax.set_xlabel("block")
    ax.set_ylabel(f"mean attention distance\n({unit})")
    ax.set_ylim(bottom=0)
    ax.legend(fontsize=canvas.SMALLER)
