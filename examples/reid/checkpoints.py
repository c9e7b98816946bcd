"""Checkpoints that a kill cannot spoil, and a check that they belong to this training."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import SAFE_WEIGHTS_NAME
from config import CONFIG, Config, load_config
from market import Splits
from safetensors import safe_open

FOLDER, FINISHED, PARTIAL = "checkpoints", "epoch-", "partial-"
# What may change between a start and a resumption.
FREE = {"evaluate_every", "checkpoint_every", "tracker", "workers"}


def save_checkpoint(accelerator: Accelerator, out: Path, epoch: int) -> None:
    """Model, optimiser and schedule after `epoch` epochs; replaces older ones when complete."""
    partial, finished = (out / FOLDER / f"{kind}{epoch:05d}" for kind in (PARTIAL, FINISHED))
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        older = [path for path in (out / FOLDER).iterdir() if path != partial]
        partial.rename(finished)  # only now it counts
        for path in older:
            shutil.rmtree(path)


def load_newest(accelerator: Accelerator, out: Path) -> int:
    """The number of epochs that are done, 0 when there is no checkpoint."""
    finished = sorted((out / FOLDER).glob(f"{FINISHED}*"))
    if not finished:
        return 0
    accelerator.load_state(str(finished[-1]))
    return int(finished[-1].name.removeprefix(FINISHED))


def check_same_training(out: Path, config: Config, data: Splits) -> None:
    """Before anything is written.

    Raises:
        ValueError: `out` holds another training.
    """
    if not (out / CONFIG).is_file():
        return
    before, now = (dataclasses.asdict(c) for c in (load_config(out), config))
    if other := [name for name in now if name not in FREE and before[name] != now[name]]:
        changes = ", ".join(f"{name} {before[name]!r} -> {now[name]!r}" for name in other)
        raise ValueError(
            f"{out} holds another training ({changes}); use its options, or another folder"
        )
    people, known = len({photo.person for photo in data.train}), _num_people(out)
    if known not in (None, people):
        raise ValueError(
            f"{out} was trained on {known} people, the data have {people}; use its data, or "
            "another folder"
        )


def _num_people(out: Path) -> int | None:
    """Of the newest checkpoint, without loading it."""
    files = sorted((out / FOLDER).glob(f"{FINISHED}*/{SAFE_WEIGHTS_NAME}"))
    if not files:
        return None
    with safe_open(files[-1], "pt") as weights:
        return weights.get_slice("classifier.weight").get_shape()[0]
