"""The model that a command looks at, with weights and encodings, and words that say which."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor, nn

import posenc
from posenc.analysis import CapturedAttention, capture_attention
from posenc.cli import files, models
from posenc.cli.errors import UsageError, one_line


def add_arguments(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """Those of which a `Subject` is made.

    Args:
        parser: gets them.
        several: there may be some models, each with its own: none excludes another here.
    """
    parser.add_argument("--model", required=True, metavar="NAME", help="of a timm model")
    models.add_size(parser)
    weights = parser if several else parser.add_mutually_exclusive_group()
    weights.add_argument("--pretrained", action="store_true", help="downloads timm's weights")
    weights.add_argument(
        "--weights", type=Path, metavar="FILE", help="the file that --pretrained would download"
    )
    weights.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="of a training, with its encodings; without all three, weights are random",
    )
    encodings = parser if several else parser.add_mutually_exclusive_group()
    encodings.add_argument("--encoding", metavar="NAME", help="patches the model, as it starts")
    encodings.add_argument(
        "--encodings", type=Path, metavar="FILE", help="patches it by a file of save_encodings"
    )
    parser.add_argument("--device", default="cpu", help="such as cuda, default cpu")
    parser.add_argument("--seed", type=int, default=0, help="of random weights, default 0")


@dataclass(frozen=True)
class Subject:
    """What the arguments ask for; nothing is read or made yet."""

    model: str
    img_size: list[int] | None = None
    pretrained: bool = False
    weights: Path | None = None
    checkpoint: Path | None = None
    encoding: str | None = None
    encodings: Path | None = None
    device: str = "cpu"
    seed: int = 0

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> Subject:
        """That of `add_arguments`."""
        return cls(**{field.name: getattr(arguments, field.name) for field in fields(cls)})

    def check(self) -> None:
        """Raises for what can be known before the work."""
        models.check_encodings(self.encoding)
        for path in (self.weights, self.checkpoint, self.encodings):
            if path is not None:
                files.check_readable(path)
        files.check_device(self.device)
        try:
            torch.manual_seed(self.seed)
        except ValueError as error:
            raise UsageError(f"--seed {self.seed}: {one_line(error)}") from None

    def build(self) -> nn.Module:
        """In eval, with its weights and encodings, on its device.

        Pretrained weights are those of the model before the patch; a checkpoint is that of the
        patched model, and its encodings give way to those of a file.

        Raises:
            UsageError: an unknown name, or a size that the model cannot have.
            ValueError: a model that is refused, or a file that does not fit it.
        """
        torch.manual_seed(self.seed)
        model = models.create(self.model, self.img_size, pretrained=self.pretrained)
        support = posenc.supports(model)
        if not support.sites:
            raise ValueError(f"{self.model} is refused: {support.reason}")
        if self.weights is not None:
            models.load_weights(model, self.model, self.weights)
        if self.encoding is not None:
            models.patch(model, self.encoding)
        if self.encodings is not None:
            posenc.load_encodings(model, self.encodings)
        if self.checkpoint is not None:
            own = self.encodings is None
            models.load_checkpoint(model, self.model, self.checkpoint, encodings=own)
        return model.eval().to(self.device)

    @property
    def words(self) -> str:
        """Which weights and encodings these are."""
        words = f"random weights (seed {self.seed})"
        if self.pretrained:
            words = f"pretrained weights {models.default_tag(self.model)}".rstrip()
        for path in (self.weights, self.checkpoint):
            words = words if path is None else f"weights of {path.name}"
        if self.encoding is not None:
            words += f", encoding {self.encoding}"
            words += "" if self.checkpoint is not None else " as it starts"
        elif self.encodings is not None:
            words += f", encodings of {self.encodings.name}"
        return words


def capture(model: nn.Module, images: Tensor) -> CapturedAttention:
    """The attention of the model on images `[B, 3, H, W]`, moved to its device.

    Raises:
        ValueError: the model refuses the images, or nothing of its attention can be seen.
    """
    device = next(model.parameters()).device
    with torch.no_grad(), capture_attention(model) as captured:
        try:
            model(images.to(device))
        except AssertionError as error:  # timm's check of the size of images
            raise ValueError(f"the model refuses the image: {one_line(error)}") from error
    if not captured.attention:
        reasons = ", ".join(dict.fromkeys(captured.left_out.values()))
        raise ValueError(f"no attention of the model can be seen: {reasons}")
    return captured
