"""A training: it goes on from its last checkpoint, and ends with weights and scores."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from data.batches import PeopleSampler, Photos, photo_loader, training_labels
from data.market import Photo, Splits
from data.sides import known_sides, sides_of
from model.centers import Centers
from model.circle import circle_logits, circle_loss
from model.losses import batch_hard_triplet, identity_loss, patch_triplet, weighted_triplet
from model.network import Seen, build_network, parameter_groups
from model.positions import describe_positions
from safetensors.torch import save_model
from search.features import check_has_answers, describe, embed, score, summarize
from search.retrieval import Scores
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from tqdm import tqdm

from training.checkpoints import (
    WEIGHTS,
    begin,
    check_same_training,
    has_checkpoint,
    load_newest,
    load_start,
    save_checkpoint,
)
from training.config import Config
from training.photos import list_photos
from training.rates import backbone_parameters, decay_by_layer, is_frozen, warn_of_idle_weights

SCORES = "scores.json"
MAPS = 4  # people whose photos a tracker gets


def train(config: Config, data: Splits, out: Path, *, quiet: bool = False) -> Scores:
    """Trains from the newest checkpoint in `out`, or from the start; writes weights and scores.

    More epochs than an earlier training in `out` had go on with it. Its learning rate is then that
    of the longer training, higher than where the shorter one ended.

    Raises:
        ValueError: data or options that do not fit, or a checkpoint of another training.
        FloatingPointError: the loss is not finite any more.
    """
    photos = list_photos(data.train)
    before = check_same_training(out, config, photos)
    check_has_answers(data)
    warn_of_idle_weights(config)
    run = Run(config, data, out, quiet)
    start = run.resume(photos)
    if before is not None and before.epochs < config.epochs:
        run.say(
            f"{before.epochs} epochs become {config.epochs}: on after {start}, with the learning "
            f"rate that {config.epochs} epochs have there, {run.rate:.2g}"
        )
    run.say(describe_positions(run.accelerator.unwrap_model(run.network).vit, config.encoding))
    run.begin(photos)
    with tqdm(
        total=config.epochs * len(run.batches),
        initial=start * len(run.batches),
        disable=quiet or not run.accelerator.is_main_process,
        unit="batch",
        desc="training",
    ) as bar:
        for epoch in range(start, config.epochs):
            run.one_epoch(epoch, bar)
            done = epoch + 1
            is_last = done == config.epochs
            if is_last or done % config.checkpoint_every == 0:
                save_checkpoint(run.accelerator, out, done)
            if not is_last and done % config.evaluate_every == 0:
                run.log_scores(run.evaluate(), done)
    scores = run.evaluate()
    run.log_scores(scores, config.epochs)
    run.finish(scores)
    return scores


class Run:
    """What a training holds."""

    def __init__(self, config: Config, data: Splits, out: Path, quiet: bool) -> None:
        self.config, self.data, self.out, self.quiet = config, data, out, quiet
        labels = training_labels(data.train)
        is_new = not config.start_from and not has_checkpoint(out)
        sides = known_sides(data.train, config.sie)
        network = build_network(config, max(labels) + 1, load_pretrained=is_new, **sides)
        people = [photo.person for photo in data.train]
        self.sampler = PeopleSampler(people, config.people, config.photos, config.seed)
        self.photos = Photos(
            data.train, config.size, seed=config.seed, augmentation=config.augmentation
        )
        loader = DataLoader(
            self.photos, batch_sampler=self.sampler, num_workers=config.workers, pin_memory=False
        )
        self.accelerator = make_accelerator(config, out)
        groups = decay_by_layer(parameter_groups(network, config), network, config.layer_decay)
        optimizer = torch.optim.AdamW(groups)
        self.backbone = backbone_parameters(network.vit)
        self.schedule = LambdaLR(optimizer, warm_cosine(config, len(self.sampler)))
        self.network, self.optimizer, self.batches = self.accelerator.prepare(
            network, optimizer, loader
        )
        self.accelerator.register_for_checkpointing(self.schedule)
        self.labels = torch.tensor(labels, device=self.accelerator.device)
        self.sides = sides_of(data.train).to(self.accelerator.device)
        self.triplet = make_triplet(config)
        self.circle = circle_loss(config.circle_margin, config.circle_scale)
        self.centers = Centers(max(labels) + 1, network.neck.num_features, config.center_rate)
        self.centers.to(self.accelerator.device)
        if config.center_weight:
            self.accelerator.register_for_checkpointing(self.centers)
        self.patch_triplet = patch_triplet(config.margin, config.triplet_metric)
        self.clock = Clock()

    def resume(self, photos: str) -> int:
        """Loads the newest checkpoint, or what the training starts from: how many epochs it has."""
        done = load_newest(self.accelerator, self.out)
        if not done and self.config.start_from:
            network = self.accelerator.unwrap_model(self.network)
            kept = load_start(network, self.config, photos)
            self.say(f"starts from {self.config.start_from}, with {kept} of its people")
        # An earlier training may have had fewer epochs, and so another rate here.
        share = self.schedule.lr_lambdas[0](self.schedule.last_epoch)
        for group, rate in zip(self.optimizer.param_groups, self.schedule.base_lrs, strict=True):
            group["lr"] = rate * share
        return done

    def begin(self, photos: str) -> None:
        """Writes what a resumption is compared with, and opens the tracker."""
        if self.accelerator.is_main_process:
            begin(self.out, self.config, photos)
        self.accelerator.wait_for_everyone()
        if self.config.tracker != "none":
            options = {"wandb": {"dir": str(self.out)}}
            self.accelerator.init_trackers("reid", asdict(self.config), options)

    def say(self, text: str) -> None:
        """A line for who watches."""
        if self.accelerator.is_main_process and not self.quiet:
            print(text)

    @property
    def rate(self) -> float:
        """The learning rate of the next step, of what is neither old nor an encoding."""
        return self.config.learning_rate * self.schedule.lr_lambdas[0](self.schedule.last_epoch)

    def one_epoch(self, epoch: int, bar: tqdm) -> None:
        """Through all batches once."""
        self.sampler.epoch = self.photos.epoch = epoch
        self.network.train()
        for parameter in self.backbone:
            parameter.requires_grad_(not is_frozen(self.config, epoch))
        losses = Counter()
        for images, indices in self.clock.waiting_for(self.batches):
            losses.update(self.step(images, indices))
            bar.update()
        means = {name: total / len(self.batches) for name, total in losses.items()}
        if not self.quiet:
            bar.set_postfix({"loss": f"{means['loss']:.3f}", "waiting": f"{self.clock.share:.0%}"})
        self.log({**means, "rate": self.rate}, epoch + 1)

    def step(self, images: Tensor, indices: Tensor) -> dict[str, float]:
        """One step of the optimizer."""
        with self.accelerator.autocast():
            seen = self.network(images, self.sides[indices])
        losses = self.losses(seen, indices)
        self.check_finite(losses, indices)
        self.optimizer.zero_grad()
        self.accelerator.backward(losses["loss"])
        norm = self.accelerator.clip_grad_norm_(self.network.parameters(), self.config.clip)
        if self.config.precision != "fp16":  # whose scaler leaves such a step out
            self.check_finite({"norm of the gradient": norm}, indices)
        self.optimizer.step()
        self.schedule.step()
        if self.config.center_weight:
            self.centers.follow(seen.features.detach().float(), self.people(indices))
        return {name: loss.item() for name, loss in losses.items()}

    def losses(self, seen: Seen, indices: Tensor) -> dict[str, Tensor]:
        """The sum and its parts, in float32, of the batches of all processes."""
        people, features = self.people(indices), seen.features.float()
        losses = {"identity": self.identity(seen.logits.float(), people)}
        for name, weight, loss, given in (
            ("triplet", self.config.triplet_weight, self.triplet, features),
            ("circle", self.config.circle_weight, self.circle, features),
            ("center", self.config.center_weight, self.centers, features),
            ("patches", self.config.patch_weight, self.patch_triplet, seen.patches.float()),
        ):
            if weight:
                losses[name] = weight * loss(given, people)
        if seen.parts and self.config.part_weight:
            losses["parts"] = self.config.part_weight * self.part_loss(seen, people)
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}

    def people(self, indices: Tensor) -> Tensor:
        """Of the batches of all processes."""
        return self.labels[self.accelerator.gather(indices)]

    def identity(self, logits: Tensor, people: Tensor) -> Tensor:
        """The identity loss."""
        if self.config.identity == "circle":
            numbers = self.config.circle_margin, self.config.circle_scale
            logits = circle_logits(logits, people, *numbers)
        return identity_loss(logits, people, self.config.smoothing)

    def part_loss(self, seen: Seen, people: Tensor) -> Tensor:
        """The mean over parts: identities, and of the jigsaw triplets, as in the papers."""
        losses = []
        for features, logits in seen.parts:
            losses.append(self.identity(logits.float(), people))
            if self.config.parts == "jigsaw":
                losses.append(self.config.triplet_weight * self.triplet(features.float(), people))
        return torch.stack(losses).sum() / len(seen.parts)

    def check_finite(self, numbers: dict[str, Tensor], indices: Tensor) -> None:
        """Stops before the weights are spoiled."""
        if all(number.isfinite() for number in numbers.values()):
            return
        names = ", ".join(self.data.train[i].path.name for i in indices.tolist())
        parts = ", ".join(f"{name} {number.item()}" for name, number in numbers.items())
        raise FloatingPointError(
            f"the training is not finite ({parts}) after {self.schedule.last_epoch} steps; the "
            f"batch: {names}. What {self.out} holds is untouched; try a lower --learning-rate or "
            "--encoding-rate in another folder"
        )

    def evaluate(self) -> Scores:
        """On query and gallery."""
        query, gallery = (self.features(photos) for photos in (self.data.query, self.data.gallery))
        return score(query, gallery, self.data)

    def features(self, photos: tuple[Photo, ...]) -> Tensor:
        """`[photos, width]`, each process its share."""
        batch = 64 * self.accelerator.num_processes  # of all together
        loader = photo_loader(photos, self.config.size, batch, self.config.workers)
        network = self.accelerator.unwrap_model(self.network)
        with self.accelerator.autocast():
            batches = self.accelerator.prepare_data_loader(loader)
            flip, sides = self.config.flip_test, sides_of(photos)
            parts = embed(network, batches, flip=flip, sides=sides)
        whole = torch.cat([self.accelerator.gather(part) for part in parts])
        return whole[: len(photos)].cpu()  # without what filled the last batch

    def log_scores(self, scores: Scores, epoch: int) -> None:
        """To the tracker."""
        self.log({"mAP": scores.mean_average_precision, "rank-1": scores.rank(1)}, epoch)
        if self.accelerator.is_main_process and self.config.tracker != "none":
            self.log_maps(epoch)

    def log_maps(self, epoch: int) -> None:
        """Pictures of where the network looks, and of its positions."""
        from findings.maps import draw_maps

        network = self.accelerator.unwrap_model(self.network)
        one_each = list({photo.person: photo for photo in self.data.query}.values())
        photos = one_each[:: math.ceil(len(one_each) / MAPS)]
        images = draw_maps(network, photos, self.config.size)
        for tracker in self.accelerator.trackers:
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images(images, step=epoch, **layout)

    def log(self, numbers: dict[str, float], epoch: int) -> None:
        """To the tracker."""
        if self.config.tracker != "none":
            self.accelerator.log({**numbers, "waiting": self.clock.share}, step=epoch)

    def finish(self, scores: Scores) -> None:
        """Writes weights and scores."""
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            network = self.accelerator.unwrap_model(self.network)
            partial = self.out / f"partial-{WEIGHTS}"
            save_model(network, str(partial))
            partial.replace(self.out / WEIGHTS)
            report = {**summarize(scores), "waiting": round(self.clock.share, 3)}
            (self.out / SCORES).write_text(json.dumps(report, indent=2) + "\n")
            self.say(f"{describe(scores)}; {self.clock.share:.0%} of the time waiting for data")
        if self.config.tracker != "none":
            self.accelerator.end_training()


def make_accelerator(config: Config, out: Path) -> Accelerator:
    """Batches are split between processes, so that their number changes nothing."""
    from accelerate.utils import DataLoaderConfiguration, DistributedDataParallelKwargs

    return Accelerator(
        cpu=not torch.accelerator.is_available(),  # else several processes do not find each other
        mixed_precision=config.precision,
        log_with=None if config.tracker == "none" else config.tracker,
        project_dir=str(out),
        dataloader_config=DataLoaderConfiguration(split_batches=True),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=bool(config.freeze))],
        step_scheduler_with_optimizer=False,
    )


def make_triplet(config: Config) -> Callable[[Tensor, Tensor], Tensor]:
    """The triplet loss of features."""
    if config.mining == "weighted":
        return weighted_triplet(config.margin, config.triplet_metric)
    factor = config.hard_factor
    return batch_hard_triplet(config.margin, config.triplet_metric, hard_factor=factor)


def warm_cosine(config: Config, steps: int) -> Any:
    """Of a step: the share of the learning rate; up in a line, then down in a half cosine."""
    warm, total = config.warm_epochs * steps, config.epochs * steps

    def share(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / (total - warm)))

    return share


@dataclass
class Clock:
    """How much of the time went into waiting for data."""

    waited: float = 0.0
    total: float = field(default=1e-9)

    def waiting_for(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The batches."""
        start = asked = time.perf_counter()
        for batch in batches:
            self.waited += time.perf_counter() - asked
            yield batch
            asked = time.perf_counter()
        self.total += time.perf_counter() - start

    @property
    def share(self) -> float:
        """0 to 1."""
        return self.waited / self.total
