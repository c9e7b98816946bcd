"""`posenc look`: one picture of what a model does with an image."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import posenc
from posenc.analysis import CapturedAttention, capture_attention
from posenc.analysis.plot import choose
from posenc.cli import files, models, photo, sheet
from posenc.cli.errors import UsageError, one_line

NAME = "look"
HELP = "one picture: an image, and where a timm model looks"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Image, model, weights, and what is drawn."""
    parser.add_argument("image", type=Path, metavar="IMAGE", help="a file that Pillow can read")
    parser.add_argument("--model", required=True, metavar="NAME", help="of a timm model")
    models.add_size(parser)
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--pretrained", action="store_true", help="downloads timm's weights")
    weights.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="weights; default random ones"
    )
    encodings = parser.add_mutually_exclusive_group()
    encodings.add_argument("--encoding", metavar="NAME", help="patches the model, as it starts")
    encodings.add_argument(
        "--encodings", type=Path, metavar="FILE", help="patches it by a file of save_encodings"
    )
    query = parser.add_mutually_exclusive_group()
    query.add_argument(
        "--query",
        nargs=2,
        type=int,
        metavar=("ROW", "COL"),
        help="the patch that looks, default that in the center",
    )
    query.add_argument(
        "--prefix-token", type=int, metavar="N", help="the prefix token that looks, 0 is CLS"
    )
    parser.add_argument(
        "--layer", type=_layer, default=-1, help="place or name of an attention module, default -1"
    )
    parser.add_argument("--device", default="cpu", help="such as cuda, default cpu")
    parser.add_argument("--seed", type=int, default=0, help="of random weights, default 0")
    parser.add_argument(
        "--out", type=Path, metavar="PNG", help="default STEM-look.png in this folder"
    )


def main(arguments: argparse.Namespace) -> int:
    """Draws the picture and prints its path."""
    _check(arguments)
    image = photo.read(arguments.image)
    out = arguments.out or Path(f"{arguments.image.stem}-look.png")
    with files.replacing(out) as file:
        figure = draw(image, arguments)
        figure.savefig(file, format=out.suffix.removeprefix("."), dpi=100)
    print(out)
    return 0


def draw(image: Any, arguments: argparse.Namespace) -> Any:
    """The figure, of an image of Pillow.

    Raises:
        UsageError: an unknown name, a layer or a query that is not there.
        ValueError: a model that is refused, or a file that does not fit it.
    """
    model = _model(arguments)
    normalized, shown = photo.prepare(image, model, arguments.img_size)
    captured = _captured(model, normalized, arguments.device)
    layer, query = _place(captured, arguments)
    title = f"{arguments.image.name}, {arguments.model}, {_words(arguments)}"
    return sheet.draw(shown, captured, layer, query, _pool(model), title)


def _check(arguments: argparse.Namespace) -> None:
    """Raises for what can be known before the work."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError('look draws with matplotlib: pip install "posenc[cli]"')
    models.check_encodings(arguments.encoding)
    for path in (arguments.checkpoint, arguments.encodings):
        if path is not None:
            files.check_readable(path)
    if arguments.out is not None:
        _check_out(arguments.out, arguments.image)
    files.check_device(arguments.device)


def _check_out(out: Path, image: Path) -> None:
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.get_supported_filetypes()
    if out.suffix.removeprefix(".").lower() not in known:
        raise UsageError(
            f"--out {out}: the name must end in a format of pictures, such as .png; there are "
            f"{', '.join(sorted(known))}"
        )
    if out.exists() and image.exists() and out.samefile(image):
        raise UsageError(f"--out {out} is the image itself")


def _layer(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return text


def _model(arguments: argparse.Namespace) -> nn.Module:
    """With its weights and encodings, on its device."""
    torch.manual_seed(arguments.seed)
    name = arguments.model
    model = models.create(name, arguments.img_size, pretrained=arguments.pretrained)
    support = posenc.supports(model)
    if not support.sites:
        raise ValueError(f"{name} is refused: {support.reason}")
    if arguments.encoding is not None:
        models.patch(model, arguments.encoding)
    if arguments.encodings is not None:
        posenc.load_encodings(model, arguments.encodings)
    if arguments.checkpoint is not None:
        own = arguments.encodings is None
        models.load_checkpoint(model, name, arguments.checkpoint, encodings=own)
    return model.eval().to(arguments.device)


def _captured(model: nn.Module, image: Tensor, device: str) -> CapturedAttention:
    with torch.no_grad(), capture_attention(model) as captured:
        try:
            model(image[None].to(device))
        except AssertionError as error:  # timm's check of the size of images
            raise ValueError(f"the model refuses the image: {one_line(error)}") from error
    if not captured.attention:
        reasons = ", ".join(dict.fromkeys(captured.left_out.values()))
        raise ValueError(f"no attention of the model can be seen: {reasons}")
    return captured


def _place(
    captured: CapturedAttention, arguments: argparse.Namespace
) -> tuple[str, int | tuple[int, int]]:
    """The layer, and the token that looks."""
    try:
        (layer,) = choose.choose_layers(list(captured.attention), [arguments.layer], "look")
        layout = captured.layouts[layer]
        query = arguments.query if arguments.prefix_token is None else arguments.prefix_token
        query = choose.center_of(layout) if query is None else query
        return layer, choose.check_query(query, layout, "look")
    except ValueError as error:
        raise UsageError(str(error)) from None


def _pool(model: Any) -> str | None:
    """What the model reads, where it is the mean of patches beside prefix tokens."""
    return "avg" if str(getattr(model, "global_pool", "")).startswith("avg") else None


def _words(arguments: argparse.Namespace) -> str:
    """Which weights these are."""
    words = f"random weights (seed {arguments.seed})"
    if arguments.pretrained:
        words = "pretrained weights"
    elif arguments.checkpoint is not None:
        words = f"weights of {arguments.checkpoint.name}"
    if arguments.encoding is not None:
        words += f", encoding {arguments.encoding}"
        words += "" if arguments.checkpoint is not None else " as it starts"
    elif arguments.encodings is not None:
        words += f", encodings of {arguments.encodings.name}"
    return words
