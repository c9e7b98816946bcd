"""How much of each patch reaches the output, over the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from posenc.analysis.plot import canvas, choose, picture
from posenc.analysis.recorder import CapturedAttention
from posenc.analysis.rollout import attention_rollout
from posenc.layout import TokenLayout

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CALLER = "plot_rollout"


def plot_rollout(
    image: Any,
    captured: CapturedAttention,
    *,
    head_fusion: str = "mean",
    discard_ratio: float = 0.0,
    pool: str | None = None,
    image_index: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    patch_size: float | tuple[float, float] | None = None,
    interpolation: str = "bilinear",
    alpha: float = 0.6,
    colorbar: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Draws attention rollout through all layers over the image.

    The map is `posenc.analysis.attention_rollout`. Colors go from its smallest value to its
    largest, which is 1: the residual connections leave rollout without values near 0.

    Args:
        image: as for `plot_attention`.
        captured: what `posenc.analysis.capture_attention` gave.
        head_fusion: as for `attention_rollout`.
        discard_ratio: as for `attention_rollout`.
        pool: as for `attention_rollout`: what the model reads.
        image_index: of the image among those that were captured.
        mean: of the channels, of an image that is normalized by it and by `std`.
        std: of the channels.
        patch_size: (height, width), where patches are not square.
        interpolation: between the centers of patches, as for matplotlib's `imshow`; "nearest"
            shows the patches.
        alpha: how opaque the map is, 0 to 1.
        colorbar: draw one beside the axes.
        ax: to draw into. Default: those of a new figure.

    Raises:
        ValueError: as `attention_rollout` and `plot_attention`; layers of several layouts.
        TypeError: no image or no record.
        ModuleNotFoundError: matplotlib is not installed.

    Returns:
        The axes.
    """
    canvas.check_axes(ax, CALLER)
    options = {"head_fusion": head_fusion, "discard_ratio": discard_ratio, "pool": pool}
    layout = _one_layout(captured)
    shown = picture.to_picture(image, CALLER, mean, std)
    picture.check_fits(shown, layout, patch_size, CALLER)
    rolled = _rolled(captured, layout, image_index, options)

    axes = canvas.axes_of(ax, _size(shown.shape[0] / shown.shape[1]), CALLER)
    low = min(rolled.min().item(), 1 - 1e-6)  # of equal values, all are the largest
    drawn = picture.overlay(
        axes,
        shown,
        rolled,
        cmap="inferno",
        vmin=low,
        vmax=1,
        interpolation=interpolation,
        alpha=alpha,
    )
    canvas.bare(axes)
    if colorbar:
        bar = axes.figure.colorbar(drawn, ax=axes, shrink=0.8, aspect=20, pad=0.02)
        bar.set_label("rollout, share of the maximum", fontsize=canvas.SMALL)
        bar.ax.tick_params(labelsize=canvas.SMALLER)
    return axes


def _one_layout(captured: Any) -> TokenLayout:
    """That of all layers."""
    choose.check_captured(captured, CALLER)
    choose.check_whole_image(captured, list(captured.attention), CALLER)
    layouts = {captured.layouts[name] for name in captured.attention}
    if len(layouts) > 1:
        raise ValueError(
            f"{CALLER}: rollout multiplies the attention of all layers, and these have different "
            f"tokens: {', '.join(sorted(map(str, layouts)))}"
        )
    return layouts.pop()


def _rolled(
    captured: CapturedAttention, layout: TokenLayout, image_index: Any, options: dict[str, Any]
) -> Tensor:
    """`[height, width]` of one image."""
    count = len(next(iter(captured.attention.values())))
    index = choose.check_image_index(image_index, count, CALLER)
    of_image = {name: one[index : index + 1] for name, one in captured.attention.items()}
    return attention_rollout(of_image, layout, **options)[0].cpu()


def _size(ratio: float) -> tuple[float, float]:
    """Of a new figure, in inches, for an image of this height by width."""
    width = min(4.0, 5.0 / ratio)
    return width + 1.0, width * ratio + 0.1
