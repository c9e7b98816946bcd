"""A ViT of timm with positions by posenc, and the head of person re-identification.

The head is BNNeck (Luo et al. 2019, arXiv 1903.07071, section 3.5): triplet losses see the feature
before a batch norm, the identity loss and the retrieval the one after it.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from data.augment import MEAN, STD
from torch import Tensor, nn
from training.config import Config

import posenc
from model.heads import Head, add_head
from model.jigsaw import Jigsaw
from model.patches import check_has_one_size, is_overlapping, overlap, set_image_size
from model.side import SideInformation
from model.stripes import Stripes
from model.tokens import check_is_plain, forward_tokens
from model.transreid import is_transreid, load_transreid
from model.weights import create_pretrained, load_weights


class Seen(NamedTuple):
    """What the losses need of a batch, of all processes together."""

    features: Tensor  # [B, width], before the batch norm
    patches: Tensor  # [B, height * width, width]
    logits: Tensor  # [B, people]
    parts: tuple[tuple[Tensor, Tensor], ...] = ()  # features and logits of each part of a body


class ReIDNetwork(nn.Module):
    """Training: `Seen`. Evaluation: the feature that is searched with, `[B, width]`.

    With parts, that is the feature of the whole body and then those of the parts. With
    `pool="token+avg"` the feature of the body is the CLS token and then the mean of the patches.
    """

    def __init__(
        self,
        vit: Any,
        num_people: int,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
        *,
        pool: str = "",
        identity: str = "softmax",
        scale: float = 30.0,
    ) -> None:
        super().__init__()
        self.vit, self.has_both = vit, pool == "token+avg"
        add_head(self, vit.num_features * (1 + self.has_both), num_people, identity, scale)
        self.sie: SideInformation | None = None
        self.parts: Jigsaw | Stripes | None = None
        self.part_heads = nn.ModuleList()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor, sides: Tensor | None = None) -> Seen | Tensor:
        """Images are `[B, 3, height, width]`, uint8; sides `[B, 2]`, None where unknown."""
        tokens, before_last = self.tokens((images / 255 - self.mean) / self.std, sides)
        features = self.pooled(tokens)
        parts = () if self.parts is None else self.parts(self.vit, tokens, before_last).unbind(1)
        if not self.training:
            own = [head.neck(part) for head, part in zip(self.part_heads, parts, strict=True)]
            return torch.cat([self.neck(features), *own], dim=1)
        features, *parts = map(of_all_processes, (features, *parts))
        patches = of_all_processes(tokens[:, self.vit.num_prefix_tokens :])
        logits = [head(part) for head, part in zip(self.part_heads, parts, strict=True)]
        pairs = tuple(zip(parts, logits, strict=True))
        return Seen(features, patches, self.classifier(self.neck(features)), pairs)

    def tokens(self, images: Tensor, sides: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Of normalized images: after all blocks, and before the last where parts need them."""
        if self.sie is None and not isinstance(self.parts, Jigsaw):
            return self.vit.forward_features(images), None
        added = None
        if self.sie is not None:
            unknown = torch.full((len(images), 2), -1, device=images.device)
            added = self.sie(unknown if sides is None else sides)
        return forward_tokens(self.vit, images, added)

    def pooled(self, tokens: Tensor) -> Tensor:
        """The feature of the whole body."""
        if not self.has_both:
            return self.vit.forward_head(tokens, pre_logits=True)
        mean = tokens[:, self.vit.num_prefix_tokens :].mean(1)
        return self.vit.head_drop(torch.cat([tokens[:, 0], mean], dim=1))


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


def build_network(
    config: Config,
    num_people: int,
    *,
    load_pretrained: bool = True,
    cameras: Sequence[int] = (),
    views: Sequence[int] = (),
) -> ReIDNetwork:
    """Seeded: the same weights for the same configuration, whatever the encoding.

    Args:
        config: of the training.
        num_people: rows of the classifier.
        load_pretrained: else weights that are asked for are not loaded.
        cameras: what `--sie` tells apart, by `known_sides`.
        views: likewise.

    Raises:
        FileNotFoundError: there is no file of weights.
        ValueError: timm does not build such a model, or its patches do not fill the images.
    """
    torch.manual_seed(config.seed)
    is_pretrained = config.pretrained or bool(config.weights)
    vit = _build_vit(config, is_pretrained and load_pretrained)
    # Weights of timm were trained on images that were normalized in their own way.
    own = vit.pretrained_cfg if is_pretrained else {"mean": MEAN, "std": STD}
    head = {"identity": config.identity, "scale": config.identity_scale}
    network = ReIDNetwork(vit, num_people, own["mean"], own["std"], pool=config.pool, **head)
    _add_parts(network, config, num_people)
    if config.sie != "none":
        check_is_plain(vit, "--sie")
    if config.encoding != "none":
        with warnings.catch_warnings():
            # quadratic and sinusoidal act from the start: here that is what we want.
            warnings.filterwarnings("ignore", message="posenc: the patched model gives other")
            posenc.patch_model(vit, config.encoding, **json.loads(config.encoding_args))
    if config.sie != "none":
        network.sie = SideInformation(vit.embed_dim, cameras, views, config.sie_scale)
    if load_pretrained and config.weights and is_transreid(Path(config.weights)):
        load_transreid(network, Path(config.weights))
    if config.size != config.table_size:
        set_size(vit, config.size, config.table_resize)
    return network


def _add_parts(network: ReIDNetwork, config: Config, num_people: int) -> None:
    """Before the model is patched: the jigsaw's block has no encodings."""
    vit = network.vit
    if config.parts != "none":
        check_is_plain(vit, f"--parts {config.parts}")
        make: dict[str, Callable[[], Jigsaw | Stripes]] = {
            "jigsaw": lambda: Jigsaw(vit, config.num_parts, config.shift, config.groups),
            "stripes": lambda: Stripes(vit, config.num_parts),
        }
        network.parts = make[config.parts]()
        kind = config.identity, config.identity_scale
        heads = (Head(vit.num_features, num_people, *kind) for _ in range(config.num_parts))
        network.part_heads.extend(heads)


def _build_vit(config: Config, load: bool) -> Any:
    create = create_pretrained if load and not config.weights else timm.create_model
    has_own_resize = bool(config.stride) or config.table_resize != "bicubic"
    is_of_timm = load and not (config.weights and is_transreid(Path(config.weights)))
    # timm resizes a table while it loads it: here not, where it is resized in another way.
    size = {} if has_own_resize and is_of_timm else {"img_size": config.table_size}
    try:
        vit = create(
            config.vit,
            num_classes=0,
            global_pool=config.pool.removesuffix("+avg"),
            **size,
            **json.loads(config.vit_args),
        )
    except TypeError as error:
        raise ValueError(
            f"{config.vit} with {config.vit_args} is no vision transformer that takes an image "
            f"size: {error}"
        ) from None
    except AssertionError as error:
        raise ValueError(f"timm does not build {config.vit} so: {error}") from None
    if config.pool == "token+avg" and getattr(vit, "cls_token", None) is None:
        raise ValueError("--pool token+avg needs a CLS token, and this model has none")
    if is_of_timm and config.weights:
        load_weights(vit, config.vit, Path(config.weights))
    if has_own_resize:
        check_is_plain(vit, "--stride or --table-resize")
        check_has_one_size(vit, "--stride or --table-resize")
        if config.stride:
            overlap(vit, config.stride)
        set_image_size(vit, config.table_size, config.table_resize)
    if not is_overlapping(vit):
        _check_patches(config, vit)
    return vit


def _check_patches(config: Config, vit: Any) -> None:
    for size in (config.size, config.table_size):
        for side, patch in zip(size, vit.patch_embed.patch_size, strict=True):
            if side % patch:
                raise ValueError(
                    f"patches of {patch} pixels do not fill images of {size[0]}x{size[1]}"
                )


def set_size(vit: Any, size: tuple[int, int], mode: str = "bicubic") -> None:
    """Of the images that it takes from now on; encodings of posenc follow by rules of their own."""
    if is_overlapping(vit) or mode != "bicubic":
        set_image_size(vit, size, mode)
    elif posenc.is_patched(vit):
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
    exempt = {"sie.table", *(f"vit.{name}" for name in network.vit.no_weight_decay())}
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
