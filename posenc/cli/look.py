"""`posenc look`: one picture of what a model does with an image."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import Any

from posenc.analysis import CapturedAttention
from posenc.analysis.plot import choose
from posenc.cli import files, photo, sheet, subject
from posenc.cli.errors import UsageError
from posenc.cli.subject import Subject

NAME = "look"
HELP = "one picture: an image, and where a timm model looks"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Image, model, weights, and what is drawn."""
    parser.add_argument("image", type=Path, metavar="IMAGE", help="a file that Pillow can read")
    subject.add_arguments(parser)
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
    seen = Subject.of(arguments)
    model = seen.build()
    normalized, shown = photo.prepare(image, model, seen.img_size)
    captured = subject.capture(model, normalized[None])
    layer, query = _place(captured, arguments)
    title = f"{arguments.image.name}, {seen.model}, {seen.words}"
    return sheet.draw(shown, captured, layer, query, _pool(model), title)


def _check(arguments: argparse.Namespace) -> None:
    """Raises for what can be known before the work."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError('look draws with matplotlib: pip install "posenc[cli]"')
    Subject.of(arguments).check()
    if arguments.out is not None:
        _check_out(arguments.out, arguments.image)


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
