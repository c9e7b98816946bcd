"""The numbers of a training, as one flat record that the command line and a JSON file share."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from options import check_fields, option

CONFIG = "config.json"
MODEL = "vit", "vit_args", "pretrained", "weights", "encoding", "encoding_args", "pool"


@dataclass(frozen=True)
class Config:
    """What is trained, and how. Defaults: the small ViT of the demo, on 64x32 crops."""

    # The model
    vit: str = option("vit_tiny_patch16_224", "any vision transformer of timm")
    vit_args: str = option(
        '{"patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 3, "mlp_ratio": 2, '
        '"pos_embed": "none", "weight_init": "moco"}',
        "JSON; what timm.create_model gets besides",
    )
    pretrained: bool = option(False, "begin with timm's pretrained weights, from the network")
    weights: str = option("", "begin with the pretrained weights in this file")
    start_from: str = option("", "folder of a finished training whose weights to begin with")
    encoding: str = option("learned+human_part", 'of posenc.patch_model, or "none"')
    encoding_args: str = option("{}", "JSON; options of the encoding")
    height: int = option(64, "of the crops, in pixels", least=1)
    width: int = option(32, "of the crops, in pixels", least=1)
    table_height: int = option(0, "of the crops that tables are made for; 0: as height", least=0)
    table_width: int = option(0, "of the crops that tables are made for; 0: as width", least=0)
    pool: str = option("avg", "CLS token, or mean of the patches", choices=("token", "avg"))
    # The losses
    triplet: str = option("soft", 'a margin, or "soft"')
    triplet_metric: str = option(
        "euclidean", "distance of the triplets", choices=("euclidean", "cosine")
    )
    patch_weight: float = option(0.0, "of the patch-wise triplet loss", least=0)
    smoothing: float = option(0.1, "of the labels, in the identity loss", least=0, below=1)
    # The training
    people: int = option(16, "in a batch", least=2)
    photos: int = option(4, "of each person in a batch", least=2)
    epochs: int = option(24, "how often about all photos are seen; can be raised later", least=1)
    warmup_epochs: int = option(
        3, "in which the learning rate rises; at most half of the epochs are used", least=0
    )
    learning_rate: float = option(1.5e-3, "the highest", least=0)
    encoding_rate: float = option(
        10.0, "learning rate of the encodings, over that of the rest", above=0
    )
    weight_decay: float = option(0.05, "of matrices", least=0)
    clip: float = option(5.0, "largest norm of the gradient", above=0)
    precision: str = option("no", "mixed, or none", choices=("no", "fp16", "bf16"))
    seed: int = option(0, "of everything random", least=0)
    # What is seen of it
    evaluate_every: int = option(12, "epochs between two evaluations", least=1)
    checkpoint_every: int = option(4, "epochs between two checkpoints", least=1)
    tracker: str = option(
        "tensorboard", "where numbers and maps go", choices=("tensorboard", "wandb", "none")
    )
    workers: int = option(0, "processes that load photos", least=0)

    def __post_init__(self) -> None:
        """Checks what would fail late."""
        check_fields(self)
        for name in ("vit_args", "encoding_args"):
            _check_options(name, getattr(self, name))
        if self.triplet != "soft":
            _check_margin(self.triplet)

    @property
    def model(self) -> dict[str, Any]:
        """What two trainings share where one starts from the other; the crops may differ."""
        same = {name: getattr(self, name) for name in MODEL}
        return {**same, "table_height": self.table_size[0], "table_width": self.table_size[1]}

    @property
    def size(self) -> tuple[int, int]:
        """Of the images."""
        return self.height, self.width

    @property
    def table_size(self) -> tuple[int, int]:
        """Of the images that the tables of the encodings are made for."""
        return self.table_height or self.height, self.table_width or self.width

    @property
    def warm_epochs(self) -> int:
        """In which the rate rises: a short training has a short warm-up."""
        return min(self.warmup_epochs, self.epochs // 2)

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
        is_margin = 0 <= float(text) < math.inf
    except ValueError:
        is_margin = False
    if not is_margin:
        raise ValueError(f'triplet must be a margin or "soft", and no less than 0, got {text!r}')


def parse(
    parser: argparse.ArgumentParser, words: Sequence[str] | None = None
) -> tuple[argparse.Namespace, Config]:
    """A command line: a training that starts from another has its model, if not told otherwise.

    Raises:
        FileNotFoundError: there is no training to start from.
        ValueError: an option does not fit.
    """
    args = parser.parse_args(words)
    if args.start_from:
        before = load_config(Path(args.start_from))
        parser.set_defaults(**before.model, height=before.height, width=before.width)
        args = parser.parse_args(words)
    return args, Config(**{one.name: getattr(args, one.name) for one in fields(Config)})


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
