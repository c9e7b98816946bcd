"""The numbers of a training, as one flat record that the command line and a JSON file share."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.augment import Augmentation
from options import check_fields, option, read_fields

CONFIG = "config.json"
MODEL = (
    *("vit", "vit_args", "pretrained", "weights", "encoding", "encoding_args", "pool"),
    *("stride", "table_resize", "sie", "sie_scale", "parts", "num_parts", "shift", "groups"),
)
IDENTITY = "softmax", "l2_softmax", "coco", "circle"


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
    table_resize: str = option(
        "bicubic",
        "the model's own table: as timm, or as TransReID",
        choices=("bicubic", "bilinear"),
    )
    pool: str = option(
        "avg",
        "the feature: CLS token, mean of the patches, or one after the other",
        choices=("token", "avg", "token+avg"),
    )
    stride: int = option(0, "of the patches, in pixels; 0: their size, else they overlap", least=0)
    sie: str = option(
        "none",
        "side information that is added to the tokens: of which camera, or view, a photo is",
        choices=("none", "camera", "view", "camera+view"),
    )
    sie_scale: float = option(3.0, "of the side information", above=0)
    parts: str = option(
        "none",
        "features beside that of the body: of shuffled patches (JPM), or stripes (PCB)",
        choices=("none", "jigsaw", "stripes"),
    )
    num_parts: int = option(4, "how many parts, each with a head of its own", least=1)
    shift: int = option(4, "of the jigsaw: how many patches move to the end", least=0)
    groups: int = option(2, "of the jigsaw: pieces from which patches are taken in turn", least=1)
    # The losses
    identity: str = option("softmax", "the identity loss", choices=IDENTITY)
    identity_scale: float = option(30.0, "of unit features, in l2_softmax and coco", above=0)
    triplet_weight: float = option(1.0, "of the triplet loss", least=0)
    triplet: str = option("soft", 'a margin, or "soft"')
    triplet_metric: str = option(
        "euclidean", "distance of the triplets", choices=("euclidean", "cosine")
    )
    mining: str = option(
        "hard", "the hardest triplets, or all of them weighted", choices=("hard", "weighted")
    )
    hard_factor: float = option(
        0.0, "by how much the hardest triplets are made harder", least=0, below=1
    )
    part_weight: float = option(1.0, "of the mean loss of the parts", least=0)
    patch_weight: float = option(0.0, "of the patch-wise triplet loss", least=0)
    circle_weight: float = option(0.0, "of the circle loss of pairs", least=0)
    circle_margin: float = option(0.25, "of both circle losses", least=0, below=1)
    circle_scale: float = option(64.0, "of both circle losses", above=0)
    center_weight: float = option(0.0, "of the center loss, such as 5e-4", least=0)
    center_rate: float = option(0.5, "how fast the centers follow, 0 to 1", least=0, most=1)
    smoothing: float = option(0.1, "of the labels, in the identity loss", least=0, below=1)
    # What is changed of a photo before it is trained on
    flip: float = option(0.5, "probability of the mirror image", least=0, most=1)
    crop: float = option(
        0.04, "share of the height by which photos are padded, then cropped", least=0, most=1
    )
    erasing: float = option(0.5, "probability that a rectangle is erased", least=0, most=1)
    erasing_area: float = option(0.3, "the largest one, as a share of the photo", above=0, most=1)
    jitter: float = option(0.0, "probability that colors change", least=0, most=1)
    jitter_strength: float = option(
        0.2, "of brightness, contrast, saturation; a quarter of it for hue", least=0, most=1
    )
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
    layer_decay: float = option(
        1.0, "learning rate of a block, over that of the next one", above=0, most=1
    )
    freeze: int = option(
        0, "first epochs in which encodings and head learn alone; -1: all epochs", least=-1
    )
    weight_decay: float = option(0.05, "of matrices", least=0)
    clip: float = option(5.0, "largest norm of the gradient", above=0)
    precision: str = option("no", "mixed, or none", choices=("no", "fp16", "bf16"))
    seed: int = option(0, "of everything random", least=0)
    # What is seen of it
    evaluate_every: int = option(12, "epochs between two evaluations", least=1)
    flip_test: bool = option(
        False, "evaluate with mean features of each photo and its mirror image"
    )
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
        if self.hard_factor and self.mining != "hard":
            raise ValueError(
                f"hard_factor is for mining hard, got {self.hard_factor} with {self.mining}; "
                "leave one out"
            )

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
    def augmentation(self) -> Augmentation:
        """What is changed of a photo."""
        return Augmentation(**{name: getattr(self, name) for name in Augmentation._fields})

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
    return args, read_fields(Config, args)


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
