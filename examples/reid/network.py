"""A ViT of timm with positions by posenc, and the head of person re-identification.

The head is BNNeck (Luo et al. 2019, arXiv 1903.07071, section 3.5): triplet losses see the feature
before a batch norm, the identity loss and the retrieval the one after it.
"""

from __future__ import annotations

import json
import warnings
from typing import Any, NamedTuple

import timm
import torch
from batches import MEAN, STD
from config import Config
from torch import Tensor, nn

import posenc


class Seen(NamedTuple):
    """What the losses need of a batch, of all processes together."""

    features: Tensor  # [B, width], before the batch norm
    patches: Tensor  # [B, height * width, width]
    logits: Tensor  # [B, people]


class ReIDNetwork(nn.Module):
    """Training: `Seen`. Evaluation: the feature that is searched with, `[B, width]`."""

    def __init__(self, vit: Any, num_people: int) -> None:
        super().__init__()
        self.vit = vit
        self.neck = nn.BatchNorm1d(vit.num_features)
        self.neck.bias.requires_grad_(False)  # as in the paper: no shift of the classes' centre
        self.classifier = nn.Linear(vit.num_features, num_people, bias=False)
        nn.init.normal_(self.classifier.weight, std=0.001)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Seen | Tensor:
        """Images are `[B, 3, height, width]`, uint8."""
        tokens = self.vit.forward_features((images / 255 - self.mean) / self.std)
        features = self.vit.forward_head(tokens, pre_logits=True)
        if not self.training:
            return self.neck(features)
        features = of_all_processes(features)
        patches = of_all_processes(tokens[:, self.vit.num_prefix_tokens :])
        return Seen(features, patches, self.classifier(self.neck(features)))


def of_all_processes(x: Tensor) -> Tensor:
    """The batches of all processes, in order; gradients flow back to each.

    Batch norm and triplets then see the whole batch. Every process computes the same loss, so that
    a gradient arrives once from each of them; the mean over processes, which data-parallel training
    takes, makes it that of the whole batch again.
    """
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return x
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(x.contiguous()))


def build_network(config: Config, num_people: int) -> ReIDNetwork:
    """Seeded: the same weights for the same configuration, whatever the encoding."""
    torch.manual_seed(config.seed)
    vit = timm.create_model(
        config.vit,
        pretrained=config.pretrained or bool(config.weights),
        pretrained_cfg_overlay={"file": config.weights} if config.weights else None,
        img_size=config.size,
        num_classes=0,
        global_pool=config.pool,
        **json.loads(config.vit_args),
    )
    network = ReIDNetwork(vit, num_people)
    if config.encoding != "none":
        with warnings.catch_warnings():
            # quadratic and sinusoidal act from the start: here that is what we want.
            warnings.filterwarnings("ignore", message="posenc: the patched model gives other")
            posenc.patch_model(vit, config.encoding, **json.loads(config.encoding_args))
    return network


def parameter_groups(network: ReIDNetwork, config: Config) -> list[dict[str, Any]]:
    """Matrices decay, vectors do not; encodings start at zero and get a higher rate."""
    encodings = {}
    if posenc.is_patched(network.vit):
        encodings = {id(p): p for _, p in posenc.encoding_parameters(network.vit)}
    rest = [p for p in network.parameters() if p.requires_grad and id(p) not in encodings]
    groups = [
        {"params": [p for p in rest if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.dim() <= 1]},
        {"params": list(encodings.values()), "lr": config.learning_rate * config.encoding_rate},
    ]
    default = {"lr": config.learning_rate, "weight_decay": 0.0}
    return [{**default, **group} for group in groups if group["params"]]
