"""One training of one model, and what it gets right under each condition."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import posenc
from which.contenders import READOUTS, add_encoding
from which.sources import Batches, Source
from which.tiers import Tier

WEIGHT_DECAY = 0.05


def build(tier: Tier, num_classes: int, readout: str, seed: int) -> VisionTransformer:
    """Without positions; the seed fixes its weights."""
    torch.manual_seed(seed)
    return VisionTransformer(
        **tier.vit,
        img_size=tier.pixels,
        num_classes=num_classes,
        global_pool=READOUTS[readout],
        pos_embed="none",
    )


def train(
    tier: Tier,
    source: Source,
    encoding: str,
    *,
    beside: bool,
    readout: str,
    seed: int,
    rate: float,
    table_rate: float = 1.0,
    share: float = 1.0,
    length: float = 1.0,
) -> nn.Module:
    """A model with this encoding, whose parameters learn `rate` times as fast as the others.

    Args:
        tier: the sizes.
        source: the images.
        encoding: a contender.
        beside: a learned table is there, too.
        readout: what the classifier reads.
        seed: of weights, images and their order.
        rate: see above.
        table_rate: the same of the learned table beside an encoding.
        share: of the tier's training images, or of those that there are.
        length: of the tier's passes.
    """
    model = add_encoding(build(tier, source.num_classes, readout, seed), encoding, beside=beside)
    model = model.to(tier.device).train()
    passes = round(tier.passes * length)
    groups = make_groups(tier, model, rate, table_rate if beside else rate)
    optimizer, schedule = make_optimizer(groups, steps=passes // tier.batch)
    images = round(min(tier.images, source.available) * share)
    for inputs, labels in source.training(seed, images=images, passes=passes, batch=tier.batch):
        with autocast(tier):
            logits = model(inputs.to(tier.device))
        loss = F.cross_entropy(logits.float(), labels.to(tier.device))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


def make_groups(
    tier: Tier, model: nn.Module, rate: float, table_rate: float
) -> list[dict[str, Any]]:
    """Of the optimizer; a learned table and the other encodings each have a rate of their own."""
    groups = posenc.parameter_groups(
        model, lr=tier.rate, encoding_lr=tier.rate * rate, weight_decay=WEIGHT_DECAY
    )
    named = posenc.encoding_parameters(model)
    table = [parameter for name, parameter in named if name.startswith("posenc.learned.")]
    if not table:
        return groups
    ids = {*map(id, table)}
    for group in groups:
        group["params"] = [one for one in group["params"] if id(one) not in ids]
    apart = {"params": table, "lr": tier.rate * table_rate, "weight_decay": 0.0}
    return [*(group for group in groups if group["params"]), apart]


def make_optimizer(
    groups: list[dict[str, Any]], steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW whose rates rise for a tenth of the steps, and then fall to nothing."""
    optimizer = torch.optim.AdamW(groups)
    rates = [group["lr"] for group in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rates, total_steps=steps + 1, pct_start=0.1
    )
    return optimizer, schedule


def autocast(tier: Tier) -> contextlib.AbstractContextManager:
    """Of the tier."""
    if not tier.autocast:
        return contextlib.nullcontext()
    return torch.autocast(tier.device, torch.bfloat16)


@torch.no_grad()
def count_right(tier: Tier, model: nn.Module, batches: Batches) -> tuple[int, int]:
    """How many of how many images it classifies correctly."""
    right = total = 0
    for images, labels in batches:
        with autocast(tier):
            logits = model(images.to(tier.device))
        right += int((logits.argmax(dim=1).cpu() == labels).sum())
        total += len(labels)
    return right, total


def parameters(model: nn.Module) -> int:
    """Their number."""
    return sum(parameter.numel() for parameter in model.parameters())
