"""Which weights learn, how fast, from when on: rates by layer, and a backbone that waits."""

from __future__ import annotations

import warnings
from typing import Any

from model.network import ReIDNetwork
from timm.models import group_parameters
from torch import nn

import posenc
from training.config import Config


def decay_by_layer(
    groups: list[dict[str, Any]], network: ReIDNetwork, decay: float
) -> list[dict[str, Any]]:
    """Splits the groups of an optimizer: each block learns `decay` times as fast as the next one.

    With L blocks, block l = 1 .. L gets the rate times `decay ** (L + 1 - l)`, what comes before
    them `decay ** (L + 1)`. What is new keeps its rate: the head, and encodings of any block.

    Raises:
        ValueError: the model does not tell its layers.

    Reference: Bao et al. 2021, arXiv 2106.08254, appendix (the rates of fine-tuning).
    """
    if decay == 1:
        return groups
    if not all(hasattr(network.vit, name) for name in ("group_matcher", "blocks")):
        raise ValueError(
            f"{type(network.vit).__name__} does not tell its layers; use a layer_decay of 1"
        )
    scales = _scales(network.vit, decay)
    split: dict[tuple[int, float], dict[str, Any]] = {}
    for number, group in enumerate(groups):
        for parameter in group["params"]:
            scale = scales.get(id(parameter), 1.0)
            empty = {**group, "lr": group["lr"] * scale, "params": []}
            split.setdefault((number, scale), empty)["params"].append(parameter)
    return list(split.values())


def _scales(vit: Any, decay: float) -> dict[int, float]:
    """By the identity of the backbone's parameters."""
    own, head = {id(p) for p in backbone_parameters(vit)}, len(vit.blocks) + 1
    layers = group_parameters(vit, vit.group_matcher(), reverse=True)
    scales = {id(vit.get_parameter(n)): decay ** (head - layer) for n, layer in layers.items()}
    return {identity: scale for identity, scale in scales.items() if identity in own}


def backbone_parameters(vit: Any) -> list[nn.Parameter]:
    """Those of the model itself that are trained, without its encodings."""
    new = set()
    if posenc.is_patched(vit):
        new = {id(parameter) for _, parameter in posenc.encoding_parameters(vit)}
    return [p for p in vit.parameters() if p.requires_grad and id(p) not in new]


def is_frozen(config: Config, epoch: int) -> bool:
    """Whether the backbone waits in this epoch, counted from 0."""
    return config.freeze < 0 or epoch < config.freeze


def warn_of_idle_weights(config: Config) -> None:
    """Where weights would never be better than at random."""
    starts = config.pretrained or config.weights or config.start_from
    if is_frozen(config, config.epochs - 1) and not starts:
        warnings.warn(
            f"the backbone is frozen in all {config.epochs} epochs, with random weights: begin "
            "with others (--pretrained, --weights, --start-from), or freeze it for fewer epochs",
            stacklevel=2,
        )
    if config.learning_rate == 0:
        warnings.warn("a learning rate of 0 trains nothing", stacklevel=2)
