"""Checkpoints that a kill cannot spoil, and a check that they belong to this training."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import torch
from accelerate import Accelerator
from model.network import ReIDNetwork, build_network, set_size
from safetensors import SafetensorError
from safetensors.torch import load_file

from training.config import CONFIG, Config, load_config, save_config
from training.photos import SEEN, check_same_photos, people_of, read_seen, same_people

FOLDER, FINISHED, PARTIAL = "checkpoints", "epoch-", "partial-"
WEIGHTS = "network.safetensors"
SIDES = "cameras", "views"
# What may change between a start and a resumption.
FREE = {"evaluate_every", "flip_test", "checkpoint_every", "tracker", "workers"}


def save_checkpoint(accelerator: Accelerator, out: Path, epoch: int) -> None:
    """Model, optimizer and schedule after `epoch` epochs; replaces older ones when complete."""
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


def load_network(
    out: Path, device: torch.device | str | None = None, size: tuple[int, int] | None = None
) -> ReIDNetwork:
    """Of a finished training; on the accelerator where there is one, for crops of another size.

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
        known = {n: weights[f"sie.{n}"].tolist() for n in SIDES if f"sie.{n}" in weights}
        network = build_network(config, people, load_pretrained=False, **known)
        network.load_state_dict(weights)
        if size not in (None, config.size):
            set_size(network.vit, size, config.table_resize)
    except (RuntimeError, ValueError, KeyError, SafetensorError) as error:
        raise ValueError(f"{path} does not fit the model of {out / CONFIG}: {error}") from None
    if device is None and torch.accelerator.is_available():
        device = torch.accelerator.current_accelerator()
    return network.to(device).eval()


def load_start(network: ReIDNetwork, config: Config, photos: str) -> int:
    """Loads the weights of a finished training into a new network.

    A person's row of a classifier is that of the same person, who shares a photo in both. Where
    there are such people, cameras of the same number are the same; else all are unknown at first.

    Args:
        network: the new one, changed in place.
        config: of the new training; `start_from` is the folder of the finished one.
        photos: of the new training, by `list_photos`.

    Returns:
        The number of people who were known.

    Raises:
        FileNotFoundError: there is no finished training.
        ValueError: it has another model.
    """
    start = Path(config.start_from)
    before = load_config(start).model
    if other := [name for name, value in config.model.items() if before[name] != value]:
        changes = ", ".join(f"{name} {before[name]!r} -> {config.model[name]!r}" for name in other)
        raise ValueError(f"{start} has another model ({changes}); start with its options")
    known, seen = load_network(start, "cpu", config.size), read_seen(start)
    layers = {n: v for n, v in known.state_dict().items() if not n.startswith("sie.")}
    layers = {n: v for n, v in layers.items() if not n.endswith("classifier.weight")}
    network.load_state_dict(layers, strict=False)
    labels, known_labels = people_of(photos), people_of(seen)
    same = same_people(seen, photos)
    old = [known_labels.index(other) for other in same.values()]
    new = [labels.index(person) for person in same]
    heads = zip([network, *network.part_heads], [known, *known.part_heads], strict=True)
    with torch.no_grad():
        for head, before_head in heads:
            rows = before_head.classifier.weight[old]
            head.classifier.weight[new] = rows.to(network.mean.device)
    if network.sie is not None:
        network.sie.start_from(known.sie, same_cameras=bool(same))
    return len(same)


def begin(out: Path, config: Config, photos: str) -> None:
    """Writes what a resumption is compared with."""
    out.mkdir(parents=True, exist_ok=True)
    (out / SEEN).write_text(photos)
    save_config(config, out)


def check_same_training(out: Path, config: Config, photos: str) -> Config | None:
    """Before anything is written.

    Returns:
        What an earlier training in `out` had, which may have been shorter.

    Raises:
        FileNotFoundError: nobody knows on which photos it was.
        ValueError: `out` holds a checkpoint or the weights of another training.
    """
    if not has_checkpoint(out) and not (out / WEIGHTS).is_file():
        return None  # nothing to lose
    earlier = load_config(out)
    before, now = (dataclasses.asdict(c) for c in (earlier, config))
    free = FREE | ({"epochs"} if config.epochs > earlier.epochs else set())
    if other := [name for name in now if name not in free and before[name] != now[name]]:
        changes = ", ".join(f"{name} {before[name]!r} -> {now[name]!r}" for name in other)
        raise ValueError(
            f"{out} holds another training ({changes}); use its options, or another folder"
        )
    check_same_photos(out, photos)
    return earlier


def has_checkpoint(out: Path) -> bool:
    """Whether a training can go on there."""
    return bool(_finished(out))


def _finished(out: Path) -> list[Path]:
    return sorted((out / FOLDER).glob(f"{FINISHED}*"))
