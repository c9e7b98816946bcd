"""Checkpoints of TransReID's own code, in a network of this example.

Their names: `base` is the backbone, `b1` its last block and norm, `b2` those of the jigsaw,
`bottleneck` and `classifier` the head, `bottleneck_1` and so on those of the parts.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from timm.models import load_state_dict
from torch import Tensor

import posenc
from model.jigsaw import Jigsaw
from posenc.patching.names import is_of_encoding

State = dict[str, Tensor]
RELATIVE = "relative_position_bias_table"
# Of the training on ImageNet, and what is computed from sizes.
LEFT_OUT = r"base\.(fc|head)\..*|.*relative_position_index"


def is_transreid(path: Path) -> bool:
    """Whether it is such a checkpoint; a file that cannot be read is none."""
    try:
        return any(key.startswith("base.") for key in load_state_dict(str(path), weights_only=True))
    except Exception:  # who loads it says what is wrong with it
        return False


def load_transreid(network: Any, path: Path) -> None:
    """Loads such a checkpoint into a network whose images have the size of its training.

    Everything that both have is loaded: the backbone must be there, a head or the jigsaw may be
    missing. Of other people, the classifiers keep their random rows. Where there are other cameras
    or views, each one begins with the mean row of the checkpoint, as an unknown one has it. Tables
    of a relative bias (the fork by SeongSuKim95) go to the encoding `swin` with the option
    `prefix_pairs="none"`.

    Raises:
        ValueError: it is that of another backbone, all of what differs is listed; nothing was
            loaded.
    """
    theirs = dict(load_state_dict(str(path), weights_only=True))
    depth = len(network.vit.blocks)
    last = any(key.startswith("b1.") for key in theirs)
    state: State = {}
    for key, value in theirs.items():
        is_replaced = last and key.startswith((f"base.blocks.{depth - 1}.", "base.norm."))
        if not (is_replaced or re.fullmatch(LEFT_OUT, key)):
            state[_own_name(key, depth)] = value
    if isinstance(network.parts, Jigsaw):
        _copy_last_block(state, depth)
    _load(network, state, path)


def _own_name(key: str, depth: int) -> str:
    """What a network of this example calls it."""
    names = {
        r"base\.sie_embed": "sie.table",
        r"b1\.0\.": f"vit.blocks.{depth - 1}.",
        r"b1\.1\.": "vit.norm.",
        r"b2\.0\.": "parts.block.",
        r"b2\.1\.": "parts.norm.",
        r"base\.": "vit.",
        r"bottleneck\.": "neck.",
    }
    for pattern, name in names.items():
        if found := re.match(pattern, key):
            return name + key[found.end() :]
    if part := re.match(r"(bottleneck|classifier)_(\d+)\.", key):
        kind = {"bottleneck": "neck", "classifier": "classifier"}[part[1]]
        return f"part_heads.{int(part[2]) - 1}.{kind}.{key[part.end() :]}"
    return key


def _copy_last_block(state: State, depth: int) -> None:
    """The jigsaw begins with the last block, where the checkpoint has no jigsaw."""
    pairs = {f"vit.blocks.{depth - 1}.": "parts.block.", "vit.norm.": "parts.norm."}
    for key, value in list(state.items()):
        for name, copy in pairs.items():
            if key.startswith(name) and RELATIVE not in key:
                state.setdefault(copy + key.removeprefix(name), value)


def _load(network: Any, state: State, path: Path) -> None:
    if "sie.table" in state and network.sie is None:
        raise ValueError(
            f"{path} was told cameras or views of its photos, which --sie does here (--weights)"
        )
    own = network.state_dict()
    is_relative = any(RELATIVE in key for key in state)
    backbone = {key: value for key, value in state.items() if key.startswith("vit.")}
    rest = {key: value for key, value in state.items() if key in own and key not in backbone}
    if "sie.table" in rest:
        rest["sie.table"] = _rows(rest["sie.table"], own["sie.table"])
    rest = {k: v for k, v in rest.items() if "classifier" not in k or v.shape == own[k].shape}
    _check(rest, own, path)
    if is_relative:
        table = {key.removeprefix("vit."): value for key, value in backbone.items()}
        posenc.load_reference_checkpoint(network.vit, table, source="transreid_relative")
    else:
        mine = [key for key in own if key.startswith("vit.")]
        needed = frozenset(key for key in mine if not is_of_encoding(key))
        _check(backbone, own, path, needed)
        rest |= backbone
    network.load_state_dict(rest, strict=False)


def _rows(theirs: Tensor, own: Tensor) -> Tensor:
    """`[cameras * views, 1, width]`, views in turn, as `[cameras, views, width]`."""
    if theirs.numel() == own.numel():
        return theirs.reshape(own.shape)
    return theirs.reshape(-1, theirs.shape[-1]).mean(0).expand(*own.shape[:2], -1)


def _check(state: State, own: State, path: Path, needed: frozenset[str] = frozenset()) -> None:
    found = [f"{key} is missing in the file" for key in sorted(needed - state.keys())]
    found += [f"{key} is missing in the model" for key in state if key not in own]
    found += [
        f"{key} is {list(value.shape)} in the file and {list(own[key].shape)} in the model"
        for key, value in state.items()
        if key in own and value.shape != own[key].shape
    ]
    if found:
        advice = ""
        if any("pos_embed is [" in one for one in found):
            advice = (
                "; --stride and --table-height, --table-width (which are resized to --height and "
                "--width) must be those of its training"
            )
        raise ValueError(
            f"{path} does not fit the model: {'; '.join(found[:4])}{advice} (--weights)"
        )
