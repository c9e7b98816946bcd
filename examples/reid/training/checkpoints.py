"""Checkpoints that a kill cannot spoil, and a check that they belong to this training."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from pathlib import Path

import torch
from accelerate import Accelerator
from data.market import Splits
from model.network import ReIDNetwork, build_network
from safetensors import SafetensorError
from safetensors.torch import load_file

from training.config import CONFIG, Config, load_config, save_config

FOLDER, FINISHED, PARTIAL = "checkpoints", "epoch-", "partial-"
WEIGHTS, DATA = "network.safetensors", "data.sha256"
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
    """The number of epochs that are done, 0 when there is no checkpoint.

    Raises:
        ValueError: it cannot be read.
    """
    finished = _finished(out)
    if not finished:
        return 0
    try:
        accelerator.load_state(str(finished[-1]))
    except Exception as error:
        raise ValueError(
            f"the checkpoint {finished[-1]} cannot be read ({error}); remove it to start anew"
        ) from error
    return int(finished[-1].name.removeprefix(FINISHED))


def load_network(out: Path, device: torch.device | str | None = None) -> ReIDNetwork:
    """Of a finished training; on the accelerator where there is one.

    Raises:
        FileNotFoundError: it is not finished, or not there.
        ValueError: the weights are those of another model.
    """
    config, path = load_config(out), out / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"the training in {out} is not finished: no {path}; run train.py")
    try:
        weights = load_file(path)
        people = len(weights["classifier.weight"])
        network = build_network(config, people, load_pretrained=False)
        network.load_state_dict(weights)
    except (RuntimeError, ValueError, KeyError, SafetensorError) as error:
        raise ValueError(f"{path} does not fit the model of {out / CONFIG}: {error}") from None
    if device is None and torch.accelerator.is_available():
        device = torch.accelerator.current_accelerator()
    return network.to(device).eval()


def begin(out: Path, config: Config, data: Splits) -> None:
    """Writes what a resumption is compared with."""
    out.mkdir(parents=True, exist_ok=True)
    (out / DATA).write_text(_fingerprint(data))
    save_config(config, out)


def check_same_training(out: Path, config: Config, data: Splits) -> None:
    """Before anything is written.

    Raises:
        ValueError: `out` holds a checkpoint or the weights of another training.
    """
    if not _finished(out) and not (out / WEIGHTS).is_file():
        return  # nothing to lose
    before, now = (dataclasses.asdict(c) for c in (load_config(out), config))
    if other := [name for name in now if name not in FREE and before[name] != now[name]]:
        changes = ", ".join(f"{name} {before[name]!r} -> {now[name]!r}" for name in other)
        raise ValueError(
            f"{out} holds another training ({changes}); use its options, or another folder"
        )
    if (out / DATA).read_text() != _fingerprint(data):
        raise ValueError(
            f"{out} was trained on other photos than these {len(data.train)}; use its data, or "
            "another folder"
        )


def _finished(out: Path) -> list[Path]:
    return sorted((out / FOLDER).glob(f"{FINISHED}*"))


def _fingerprint(data: Splits) -> str:
    """Of the names and people of the training set."""
    lines = sorted(f"{photo.path.name} {photo.person}" for photo in data.train)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
