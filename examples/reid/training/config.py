"""The numbers of a training, as one flat record that the command line and a JSON file share."""

from __future__ import annotations

import argparse
import dataclasses
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

CONFIG = "config.json"
POSITIVE = (
    *("height", "width", "epochs", "encoding_rate", "clip"),
    *("evaluate_every", "checkpoint_every"),
)
CHOICES = {
    "triplet_metric": ("euclidean", "cosine"),
    "precision": ("no", "fp16", "bf16"),
    "tracker": ("tensorboard", "wandb", "none"),
    "pool": ("token", "avg"),
}


@dataclass(frozen=True)
class Config:
    """What is trained, and how. Defaults: the small ViT of the demo, on 64x32 crops."""

    # The model
    vit: str = "vit_tiny_patch16_224"  # any vision transformer of timm
    vit_args: str = (  # JSON; what timm.create_model gets besides
        '{"patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 3, "mlp_ratio": 2, '
        '"pos_embed": "none", "weight_init": "moco"}'
    )
    pretrained: bool = False
    weights: str = ""  # a file of pretrained weights, instead of timm's own
    encoding: str = "learned+human_part"  # of posenc.patch_model, or "none"
    encoding_args: str = "{}"  # JSON; its options
    height: int = 64
    width: int = 32
    pool: str = "avg"  # "token" (CLS) or "avg" (mean of the patches)
    # The losses
    triplet: str = "soft"  # a margin, or "soft"
    triplet_metric: str = "euclidean"
    patch_weight: float = 0.0  # of the patch-wise triplet loss
    smoothing: float = 0.1
    # The training
    people: int = 16  # in a batch
    photos: int = 4  # of each of them
    epochs: int = 24
    warmup_epochs: int = 3
    learning_rate: float = 1.5e-3
    encoding_rate: float = 10.0  # times the learning rate
    weight_decay: float = 0.05
    clip: float = 5.0  # largest norm of the gradient
    precision: str = "no"  # mixed, or none
    seed: int = 0
    # What is seen of it
    evaluate_every: int = 12  # epochs
    checkpoint_every: int = 4  # epochs
    tracker: str = "tensorboard"
    workers: int = 0  # processes that load photos

    def __post_init__(self) -> None:
        """Checks what would fail late."""
        for name in POSITIVE:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs must be fewer than epochs, got {self.warmup_epochs} of "
                f"{self.epochs}"
            )
        if min(self.people, self.photos) < 2:
            raise ValueError(
                f"people and photos must be at least 2, got {self.people} and {self.photos}"
            )
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}"
                )
        for name in ("vit_args", "encoding_args"):
            _check_options(name, getattr(self, name))
        if self.triplet != "soft":
            _check_margin(self.triplet)

    @property
    def size(self) -> tuple[int, int]:
        """Of the images."""
        return self.height, self.width

    @property
    def margin(self) -> float | None:
        """Of the triplet losses, None for the soft one."""
        return None if self.triplet == "soft" else float(self.triplet)


def _check_options(name: str, text: str) -> None:
    try:
        options = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} must be JSON, got {text!r}: {error}") from None
    if not isinstance(options, dict):
        raise ValueError(f'{name} must be an object such as {{"depth": 6}}, got {text!r}')


def _check_margin(text: str) -> None:
    try:
        float(text)
    except ValueError:
        raise ValueError(f'triplet must be a margin or "soft", got {text!r}') from None


def add_options(parser: argparse.ArgumentParser) -> None:
    """One for each field."""
    group = parser.add_argument_group("the training")
    for field in fields(Config):
        name, default = f"--{field.name.replace('_', '-')}", field.default
        if isinstance(default, bool):
            group.add_argument(name, action=argparse.BooleanOptionalAction, default=default)
        else:
            choices = CHOICES.get(field.name)
            group.add_argument(
                name, type=type(default), default=default, choices=choices, help=f"{default}"
            )


def from_options(options: dict[str, Any]) -> Config:
    """Takes its fields out of the options."""
    return Config(**{field.name: options.pop(field.name) for field in fields(Config)})


def save_config(config: Config, folder: Path) -> None:
    """As `config.json`."""
    partial = folder / f"partial-{CONFIG}"
    partial.write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")
    partial.replace(folder / CONFIG)


def load_config(folder: Path) -> Config:
    """Of a finished or interrupted training.

    Raises:
        FileNotFoundError: there is none in the folder.
        ValueError: it cannot be read.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"no training in {folder}: expected {path}, written by train.py")
    try:
        return Config(**json.loads(path.read_text()))
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{path} is not the record of a training: {error}") from None
