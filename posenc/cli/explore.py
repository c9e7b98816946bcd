"""`posenc explore`: a page on which one sees where each head of a model looks."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from posenc.cli import files, photo, subject
from posenc.cli.errors import Parser, UsageError, one_line
from posenc.cli.models import input_size
from posenc.cli.subject import Subject
from posenc.explorer import Exhibit, Picture, make_page
from posenc.explorer.page import STEPS

NAME = "explore"
HELP = "a page, in one file, on which to click where each head of a model looks"
SHOWN_SIDE = 448  # of the image on the page, in pixels, at least


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Images, models with their weights, and the file of the page."""
    parser.add_argument(
        "images", nargs="+", type=Path, metavar="IMAGE", help="files that Pillow can read"
    )
    subject.add_arguments(parser, several=True)
    parser.add_argument(
        "--out", type=Path, metavar="HTML", help="default STEM-explore.html in this folder"
    )
    parser.epilog = (
        "Several --model compare: what follows a --model is of that one, what comes before the "
        f"first is of all. {parser.epilog}"
    )


def main(arguments: argparse.Namespace) -> int:
    """Writes the page and prints its path."""
    subjects = [Subject.of(one) for one in _each(arguments.given)]
    for each in subjects:
        each.check()
    images = {path: photo.read(path) for path in arguments.images}
    out = arguments.out or Path(f"{arguments.images[0].stem}-explore.html")
    if out in images or any(out.exists() and out.samefile(path) for path in images):
        raise UsageError(f"--out {out} is an image itself")
    with files.replacing(out) as file:
        exhibits = [_exhibit(each, images) for each in subjects]
        with _progress(len(exhibits) * STEPS) as done:
            page = _page(exhibits, done)
        file.write(page)
    print(f"{out} ({len(page) / 1e6:.1f} MB)")
    return 0


def _each(given: list[str]) -> list[argparse.Namespace]:
    """The arguments of each model: those before the first `--model` and those from its own on."""
    starts = [at for at, word in enumerate(given) if word.split("=")[0] == "--model"]
    ends = [*starts[1:], len(given)]
    parser = Parser(f"posenc {NAME}", allow_abbrev=False)
    subject.add_arguments(parser)
    groups = (given[: starts[0]] + given[a:b] for a, b in zip(starts, ends, strict=True))
    return [parser.parse_known_args(words)[0] for words in groups]


def _exhibit(of: Subject, images: dict[Path, Any]) -> Exhibit:
    model = of.build()
    pictures = [_picture(path.name, image, model, of) for path, image in images.items()]
    return Exhibit(model, of.model, of.words, pictures)


def _picture(name: str, image: Any, model: Any, of: Subject) -> Picture:
    size = input_size(model, of.img_size)
    pixels, _ = photo.prepare(image, model, of.img_size)
    times = -(-SHOWN_SIDE // max(size))
    _, shown = photo.prepare(image, model, of.img_size, times=times)
    return Picture(name, pixels.to(of.device), shown)


def _page(exhibits: list[Exhibit], done: Callable[[], Any]) -> bytes:
    try:
        return make_page(exhibits, done=done)
    except AssertionError as error:  # timm's check of the size of images
        raise ValueError(f"a model refuses the image: {one_line(error)}") from error


@contextlib.contextmanager
def _progress(steps: int) -> Iterator[Callable[[], Any]]:
    """Counts steps, with a bar on stderr where tqdm is installed."""
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        yield lambda: None
        return
    with tqdm(total=steps, unit="step", leave=False) as bar:
        yield bar.update
