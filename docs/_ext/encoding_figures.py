"""What an encoding does, as a figure: between equal tokens, that nothing but position differs."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor

import posenc
from posenc.analysis.plot import canvas, plot_similarity
from posenc.encodings.base import Encoding

SQUARE = posenc.TokenLayout(11, 11, prefix=1)
UPRIGHT = posenc.TokenLayout(16, 8, prefix=1)  # of people
LAYOUTS = {"body": UPRIGHT, "human_part": UPRIGHT}
HEADS = {"convit": 9, "quadratic": 9, "lookhere": 8}  # a 3x3 stencil; eight directions
HEAD_DIM = 16
DOTS = 100  # an inch
ROUNDING = 1e-4

ATTENTION = (
    "What the patch in the frame gives to each patch where all tokens have the same content: the "
    "logarithm of its attention less the mean over the patches, one panel for each head. Red is "
    "more, blue is less, gray is not seen."
)
TABLE = (
    "How alike (cosine) the position of some patches is to that of each patch, in what the "
    "encoding adds to tokens; the mean over all patches is taken out."
)
CONVOLUTION = (
    "What the patch in the frame passes on to the patches around it, in some channels, if it alone "
    "is not zero. Red is more, blue is less."
)
FLAT = "It is the same everywhere: this depends on content alone."
RANDOM = "Parameters that start at zero have random values here, or there would be nothing to see."


def draw(name: str, path: Path) -> str:
    """Writes the figure of a registered encoding, and says in words what it shows."""
    encoding, is_random = _example(name)
    with torch.no_grad():
        figure, words = _figure(encoding)
    figure.savefig(path, dpi=DOTS, metadata={"Software": None})
    return f"{words} {RANDOM}" if is_random else words


def _example(name: str) -> tuple[Encoding, bool]:
    """Of a middle block, and whether zeros of it became random."""
    layout, heads = LAYOUTS.get(name, SQUARE), HEADS.get(name, 4)
    sizes = {"num_heads": heads, "head_dim": HEAD_DIM, "embed_dim": heads * HEAD_DIM}
    torch.manual_seed(0)
    encoding = posenc.create_encoding(name, layout=layout, **sizes, block=5, num_blocks=12).eval()
    zeros = [parameter for parameter in encoding.parameters() if not parameter.any()]
    for parameter in zeros:
        torch.nn.init.normal_(parameter, std=0.3)
    return encoding, bool(zeros)


def _figure(encoding: Encoding) -> tuple[Figure, str]:
    if isinstance(encoding, posenc.AttentionEncoding):
        maps = attention_between_equals(encoding)
        is_flat = maps.abs().max() < ROUNDING
        return _maps(maps, encoding.layout), f"{ATTENTION} {FLAT}" if is_flat else ATTENTION
    if encoding.placement == "position":
        return _similarity(encoding), TABLE
    return _maps(passed_on(encoding), encoding.layout), CONVOLUTION


def attention_between_equals(encoding: posenc.AttentionEncoding) -> Tensor:
    """Of the patch in the center: `[heads, height, width]`, log-attention less its mean."""
    layout = encoding.layout
    heads, tokens = encoding.num_heads, layout.num_tokens
    torch.manual_seed(1)
    content = torch.randn(1, heads, 1, HEAD_DIM).expand(-1, -1, tokens, -1)
    terms = encoding(content, content, layout)
    terms = [term for term in terms if not isinstance(term, posenc.ValueLookup)]
    weights_themselves = torch.eye(tokens).expand(1, heads, -1, -1)
    weights = posenc.attend(content, content, weights_themselves, terms, backend="reference")
    maps = weights[0, :, _center(layout), layout.prefix :].log().unflatten(-1, layout.grid)
    seen = maps.isfinite()
    return maps - maps.where(seen, 0).sum((1, 2), True) / seen.sum((1, 2), True)


def passed_on(encoding: posenc.TokenEncoding) -> Tensor:
    """`[channels, height, width]` of four channels, from the patch in the center."""
    layout = encoding.layout
    alone = torch.zeros(1, layout.num_tokens, encoding.embed_dim)
    alone[:, _center(layout)] = 1
    change = encoding(alone, layout) - encoding(torch.zeros_like(alone), layout) - alone
    return change[0, layout.prefix :, :4].T.unflatten(-1, layout.grid)


def _center(layout: posenc.TokenLayout) -> int:
    return layout.prefix + layout.height // 2 * layout.width + layout.width // 2


def _similarity(encoding: posenc.TokenEncoding) -> Figure:
    layout = encoding.layout
    table = encoding(torch.zeros(1, layout.num_tokens, encoding.embed_dim), layout)
    bottom, right = layout.height - 1, layout.width - 1
    queries = [(0, 0), (bottom // 2, right // 2), (bottom, right // 2), (bottom // 2, right)]
    figure = Figure(figsize=(7.5, 2.3), layout="compressed")
    return plot_similarity(table, layout, queries=queries, center=True, figure=figure)


def _maps(maps: Tensor, layout: posenc.TokenLayout) -> Figure:
    """A panel each, with one scale for all."""
    rows, columns = canvas.arrange(len(maps), layout.height / layout.width)
    width, height = canvas.panel_size(rows, columns, layout.height / layout.width, largest=1.6)
    figure = Figure((columns * width + 0.8, rows * height + 0.2), layout="compressed")
    panels = figure.subplots(rows, columns, squeeze=False)
    limit = _limit(maps)
    colors = colormaps["RdBu_r"].with_extremes(bad=canvas.UNSEEN)
    for axes, one in zip(panels.flat, maps.where(maps.isfinite(), torch.nan), strict=False):
        image = axes.imshow(one.numpy(), cmap=colors, vmin=-limit, vmax=limit)
        canvas.mark(axes, (layout.height // 2, layout.width // 2), layout)
        canvas.bare(axes)
    for axes in panels.flat[len(maps) :]:
        axes.axis("off")
    canvas.limits_bar(figure, image, list(panels.flat))
    return figure


def _limit(maps: Tensor) -> float:
    """Of the colors: what is rounding has none."""
    largest = maps[maps.isfinite()].abs().max().item()
    return largest if largest > ROUNDING else 1.0
