"""What an encoding costs: parameters, and time as a ratio to the same model without positions."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from posenc.bench.timing import environment, paired_ratio
from which.contenders import add_encoding
from which.tiers import Tier
from which.training import autocast, build, parameters

CLASSES = 10
PAIRS = 15


def measure(tier: Tier, encoding: str, pairs: int = PAIRS) -> dict[str, object]:
    """Medians and quartiles of pairs timed in turns, as the tier runs; on one thread of a CPU."""
    device = torch.device(tier.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    plain = build(tier, CLASSES, "mean", seed=0)
    extra = add_encoding(build(tier, CLASSES, "mean", seed=0), encoding)
    number = parameters(extra) - parameters(plain)
    models = plain.to(device), extra.to(device)
    ratios = {
        name: vars(paired_ratio(*(run(model, tier) for model in models), device, pairs))
        for name, run in {"forward": forward, "training": training}.items()
    }
    return {"parameters": number, **ratios, "device": environment(device)["device"]}


def forward(model: nn.Module, tier: Tier) -> Callable[[], object]:
    """Classifies, without gradients."""
    images = torch.randn(tier.batch, tier.vit.get("in_chans", 3), tier.pixels, tier.pixels)
    images = images.to(tier.device)

    def run() -> object:
        model.eval()
        with torch.no_grad(), autocast(tier):
            return model(images)

    return run


def training(model: nn.Module, tier: Tier) -> Callable[[], object]:
    """Forward and backward, as in a step without its optimizer."""
    images = torch.randn(tier.batch, tier.vit.get("in_chans", 3), tier.pixels, tier.pixels)
    images = images.to(tier.device)
    labels = torch.zeros(tier.batch, dtype=torch.long, device=tier.device)

    def run() -> object:
        model.train().zero_grad()
        with autocast(tier):
            logits = model(images)
        F.cross_entropy(logits.float(), labels).backward()
        return model

    return run
