"""The page: what it shows of models and images, and its file."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import torch
from torch import Tensor, nn

from posenc import __version__
from posenc.analysis.checks import check_floating
from posenc.analysis.crops import crops_of
from posenc.analysis.logit_parts import FEWEST_MEANS
from posenc.analysis.logits import LogitShares, split_logits
from posenc.explorer.calls import LATER_CALL, Seen, describe_call, finite, means_over, watch
from posenc.explorer.numbers import Numbers
from posenc.layout import TokenLayout

FORMAT = 1
NUM_CROPS = 30
STEPS = 3  # of each exhibit
PLACE = "<!-- posenc data -->"
JPEG_QUALITY = 88
PREFIX_NAMES = {  # of the learned tokens of timm, torchvision, open_clip and Hugging Face
    "cls_token": "CLS",
    "class_token": "CLS",
    "class_embedding": "CLS",
    "dist_token": "distillation",
    "distillation_token": "distillation",
    "reg_token": "register",
    "register_tokens": "register",
}


@dataclass(frozen=True, eq=False)
class Picture:
    """An image.

    Args:
        name: that a reader knows it by.
        pixels: `[3, H, W]`, as the model receives it.
        shown: `[3, h, w]` from 0 to 1, of the same part of the image, as the page shows it.
    """

    name: str
    pixels: Tensor
    shown: Tensor


@dataclass(frozen=True, eq=False)
class Exhibit:
    """A model and the images that it sees.

    Args:
        model: any model that `posenc.patch_model` could patch, or one that it has patched.
        name: of the model.
        weights: which weights these are, in words.
        pictures: one or more.
    """

    model: nn.Module
    name: str
    weights: str
    pictures: Sequence[Picture]


def make_page(
    exhibits: Sequence[Exhibit],
    *,
    num_crops: int = NUM_CROPS,
    done: Callable[[], Any] | None = None,
) -> bytes:
    """One self-contained HTML page that shows where each head looks.

    For every layer that sees the whole image it holds queries, keys and biases of each image, and
    computes attention when a token is clicked. To tell position from content it also holds the
    means of queries and keys over crops of the images (`posenc.analysis.crops_of`), and the shares
    of `posenc.analysis.split_logits` from the same crops: both are approximate, and the page
    says so. Queries, keys, means and what each query or key reads of a table are rounded to 16
    bits, so that weights differ by a few thousandths of the largest from those of the model.

    Args:
        exhibits: models with their images; the page compares any two.
        num_crops: of all images of a model together, at least 5.
        done: called after each of the `STEPS` steps that an exhibit takes.

    Raises:
        ValueError: a model is in training mode, compiled or not known, or has no attention over
            the whole image, with the reasons; a picture that is none, or too few crops.
        TypeError: a picture that is no floating point tensor.

    Returns:
        The page in UTF-8.
    """
    done = done or (lambda: None)
    if isinstance(num_crops, bool) or not isinstance(num_crops, int) or num_crops <= FEWEST_MEANS:
        raise ValueError(
            f"explore: num_crops must be at least {FEWEST_MEANS + 1}, got {num_crops!r}"
        )
    for exhibit in exhibits:
        _check(exhibit)
    numbers, models, subjects = Numbers(), [], []
    for index, exhibit in enumerate(exhibits):
        crops = _crops(exhibit.pictures, num_crops)
        seen = [watch(exhibit.model, picture.pixels[None]) for picture in exhibit.pictures]
        done()
        means = means_over(exhibit.model, crops)
        done()
        shares = split_logits(exhibit.model, crops, blocks=_modules(seen[0]).__contains__)
        done()
        models.append(_describe_model(exhibit, seen[0], means, shares, numbers))
        for picture, each in zip(exhibit.pictures, seen, strict=True):
            layers = [describe_call(call, layout, numbers) for call, layout in each.calls.values()]
            subjects.append({"model": index, "image": _describe(picture), "layers": layers})
    return _filled(
        {"format": FORMAT, "version": __version__, "models": models, "subjects": subjects}, numbers
    )


def _check(exhibit: Exhibit) -> None:
    if exhibit.model.training:
        raise ValueError("explore: the model is in training mode: call model.eval() first")
    if not exhibit.pictures:
        raise ValueError(f"explore: no pictures were given for {exhibit.name}")
    for picture in exhibit.pictures:
        _check_picture(picture)


def _check_picture(picture: Picture) -> None:
    for what, image in (("pixels", picture.pixels), ("shown", picture.shown)):
        check_floating(image, f"explore: {what} of {picture.name}")
        if image.dim() != 3:
            raise ValueError(
                f"explore: {what} of {picture.name} must be [channels, height, width], got "
                f"{list(image.shape)}"
            )
    shown = picture.shown
    if len(shown) != 3 or not bool(((shown >= 0) & (shown <= 1)).all()):
        raise ValueError(
            f"explore: shown of {picture.name} must be [3, height, width] from 0 to 1, got "
            f"{list(shown.shape)} from {shown.min():.3g} to {shown.max():.3g}"
        )


def _crops(pictures: Sequence[Picture], count: int) -> Tensor:
    """Of all images, as equally many of each as the count allows."""
    each = -(-count // len(pictures))
    return torch.cat([crops_of(picture.pixels, each) for picture in pictures])[:count]


def _describe_model(
    exhibit: Exhibit,
    seen: Seen,
    means: dict[str, list[Tensor]],
    shares: LogitShares,
    numbers: Numbers,
) -> dict[str, Any]:
    notes = [*shares.notes, *(f"{name} is not shown: {why}" for name, why in seen.left_out.items())]
    layers = []
    for name, (call, layout) in seen.calls.items():
        module, _, later = name.partition(LATER_CALL)
        own = shares.shares.get(module)
        both = means.get(name)
        layers.append(
            {
                "name": name,
                "height": layout.height,
                "width": layout.width,
                "prefix": prefix_names(exhibit.model, layout),
                "heads": call.query.shape[1],
                "means": both
                and {
                    "query": numbers.add_half(both[0]),
                    "key": numbers.add_half(both[1]),
                },
                "why_no_means": None if both else "it mixes two attentions",
                "shares": own and _of_call(own, call.query.shape[1], int(later or 1) - 1),
                "why_no_shares": None if own else shares.left_out.get(module),
            }
        )
    return {
        "name": exhibit.name,
        "weights": exhibit.weights,
        "notes": notes,
        "num_crops": shares.num_images,
        "layers": layers,
    }


def _modules(seen: Seen) -> set[str]:
    return {name.partition(LATER_CALL)[0] for name in seen.calls}


def _of_call(shares: dict[str, Tensor], heads: int, index: int) -> dict[str, list[float | None]]:
    """Those of the heads of one call; the heads of later calls follow those of the first."""
    mine = slice(index * heads, (index + 1) * heads)
    return {part: finite(values[mine]) for part, values in shares.items()}


def prefix_names(model: nn.Module, layout: TokenLayout) -> list[str]:
    """What the tokens before the patches are, where its learned tokens account for all of them.

    >>> import timm
    >>> vit = timm.create_model("vit_tiny_patch16_224", depth=1, reg_tokens=2)
    >>> prefix_names(vit, TokenLayout(14, 14, prefix=3))
    ['CLS', 'register 1', 'register 2']
    """
    counts = dict.fromkeys(PREFIX_NAMES.values(), 0)
    for path, parameter in model.named_parameters():
        name = PREFIX_NAMES.get(path.rpartition(".")[2])
        if name is not None:
            counts[name] += parameter.numel() // parameter.shape[-1]
    registers = counts.pop("register")
    names = [name for name, count in counts.items() for _ in range(count)]
    names += [f"register {index + 1}" for index in range(registers)]
    if len(names) != layout.prefix or max(counts.values()) > 1:
        return [f"prefix {index}" for index in range(layout.prefix)]
    return names


def _describe(picture: Picture) -> dict[str, Any]:
    from PIL import Image

    height, width = picture.shown.shape[1:]
    pixels = (picture.shown.permute(1, 2, 0) * 255).round().to(torch.uint8).cpu().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=JPEG_QUALITY)
    code = base64.b64encode(file.getvalue()).decode("ascii")
    url = f"data:image/jpeg;base64,{code}"
    return {"name": picture.name, "height": height, "width": width, "url": url}


def _filled(data: dict[str, Any], numbers: Numbers) -> bytes:
    template = resources.files("posenc.explorer").joinpath("page.html").read_text("utf-8")
    # A name such as "<!--<script>" would swallow the end of the script that it stands in.
    text = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    scripts = (
        f'<script type="application/json" id="posenc-data">{text}</script>\n'
        f'<script type="text/plain" id="posenc-numbers">{numbers.base64()}</script>'
    )
    before, found, after = template.partition(PLACE)
    if not found:
        raise RuntimeError(f"page.html has no line {PLACE}: build it anew (make explorer)")
    return f"{before}{scripts}{after}".encode()
