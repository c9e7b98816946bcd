"""A ViT of timm with positions by posenc, and the head of person re-identification.

The head is BNNeck (Luo et al. 2019, arXiv 1903.07071, section 3.5): triplet losses see the feature
before a batch norm, the identity loss and the retrieval the one after it.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from data.augment import MEAN, STD
from torch import Tensor, nn
from training.config import Config

import posenc
from model.classifiers import make_classifier
from model.weights import create_pretrained, load_weights


class Seen(NamedTuple):
    """What the losses need of a batch, of all processes together."""

    features: Tensor  # [B, width], before the batch norm
    patches: Tensor  # [B, height * width, width]
    logits: Tensor  # [B, people]


class ReIDNetwork(nn.Module):
    """Training: `Seen`. Evaluation: the feature that is searched with, `[B, width]`."""

    def __init__(
        self,
        vit: Any,
        num_people: int,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
        identity: str = "softmax",
        scale: float = 30.0,
    ) -> None:
        super().__init__()
        self.vit = vit
        self.neck = nn.BatchNorm1d(vit.num_features)
        self.neck.bias.requires_grad_(False)  # as in the paper: no shift of the classes' center
        self.classifier = make_classifier(identity, vit.num_features, num_people, scale)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

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
    return _AllGather.apply(x)


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [
            torch.empty_like(x, memory_format=torch.contiguous_format)
            for _ in range(torch.distributed.get_world_size())
        ]
        torch.distributed.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """The sum of what all processes send back to this one."""
        grad = grad.contiguous()
        torch.distributed.all_reduce(grad)
        return grad.chunk(torch.distributed.get_world_size())[torch.distributed.get_rank()]


def build_network(config: Config, num_people: int, *, load_pretrained: bool = True) -> ReIDNetwork:
    """Seeded: the same weights for the same configuration, whatever the encoding.

    Raises:
        FileNotFoundError: there is no file of weights.
        ValueError: timm does not build such a model, or its patches do not fill the images.
    """
    torch.manual_seed(config.seed)
    is_pretrained = config.pretrained or bool(config.weights)
    vit = _build_vit(config, is_pretrained and load_pretrained)
    # Weights of timm were trained on images that were normalised in their own way.
    own = vit.pretrained_cfg if is_pretrained else {"mean": MEAN, "std": STD}
    head = {"identity": config.identity, "scale": config.identity_scale}
    network = ReIDNetwork(vit, num_people, own["mean"], own["std"], **head)
    if config.encoding != "none":
        with warnings.catch_warnings():
            # quadratic and sinusoidal act from the start: here that is what we want.
            warnings.filterwarnings("ignore", message="posenc: the patched model gives other")
            posenc.patch_model(vit, config.encoding, **json.loads(config.encoding_args))
    if config.size != config.table_size:
        set_size(vit, config.size)
    return network


def _build_vit(config: Config, load: bool) -> Any:
    create = create_pretrained if load and not config.weights else timm.create_model
    try:
        vit = create(
            config.vit,
            img_size=config.table_size,
            num_classes=0,
            global_pool=config.pool,
            **json.loads(config.vit_args),
        )
    except TypeError as error:
        raise ValueError(
            f"{config.vit} with {config.vit_args} is no vision transformer that takes an image "
            f"size: {error}"
        ) from None
    if load and config.weights:
        load_weights(vit, config.vit, Path(config.weights))
    for size in (config.size, config.table_size):
        for side, patch in zip(size, vit.patch_embed.patch_size, strict=True):
            if side % patch:
                raise ValueError(
                    f"patches of {patch} pixels do not fill images of {size[0]}x{size[1]}"
                )
    return vit


def set_size(vit: Any, size: tuple[int, int]) -> None:
    """Of the images that it takes from now on."""
    if posenc.is_patched(vit):
        posenc.set_layout(vit, size)
    else:
        vit.set_input_size(img_size=size)


def parameter_groups(network: ReIDNetwork, config: Config) -> list[dict[str, Any]]:
    """Matrices decay; vectors and the model's tokens and positions do not, nor encodings.

    Encodings start at zero and get a higher rate.
    """
    encodings = {}
    if posenc.is_patched(network.vit):
        encodings = {id(p): p for _, p in posenc.encoding_parameters(network.vit)}
    exempt = {f"vit.{name}" for name in network.vit.no_weight_decay()}
    rest = {n: p for n, p in network.named_parameters() if p.requires_grad}
    rest = {n: p for n, p in rest.items() if id(p) not in encodings}
    decaying = {n: p for n, p in rest.items() if p.dim() > 1 and n not in exempt}
    groups = [
        {"params": list(decaying.values()), "weight_decay": config.weight_decay},
        {"params": [p for n, p in rest.items() if n not in decaying]},
        {"params": list(encodings.values()), "lr": config.learning_rate * config.encoding_rate},
    ]
    default = {"lr": config.learning_rate, "weight_decay": 0.0}
    return [{**default, **group} for group in groups if group["params"]]
