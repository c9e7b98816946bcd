"""One door for checkpoints of the papers' own code."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from posenc.layout import TokenLayout
from posenc.patching.models.examine import check_module
from posenc.patching.patch import PatchRecord, find_patched, patched_backbone
from posenc.patching.reference.beit import BEIT
from posenc.patching.reference.convit import CONVIT
from posenc.patching.reference.cpvt import CPVT
from posenc.patching.reference.fit import (
    Fit,
    check_fit,
    copy_values,
    fit_others,
    fit_tables,
    tensors_of,
)
from posenc.patching.reference.grids import checked_grid
from posenc.patching.reference.irpe import IRPE
from posenc.patching.reference.places import check_patched, check_sizes, patch_call, places_of
from posenc.patching.reference.reading import Reading, read
from posenc.patching.reference.rope_vit import ROPE_VIT
from posenc.patching.reference.source import Grid, Source
from posenc.patching.reference.state import checked_state, listed
from posenc.patching.reference.swin import SWIN
from posenc.patching.reference.swin_v2 import SWIN_V2
from posenc.patching.reference.transreid import TRANSREID_RELATIVE
from posenc.registry import did_you_mean

SOURCES = {
    source.name: source
    for source in (IRPE, BEIT, ROPE_VIT, TRANSREID_RELATIVE, SWIN, SWIN_V2, CONVIT, CPVT)
}


@dataclass(frozen=True)
class LoadedCheckpoint:
    """What `load_reference_checkpoint` did; printed, a few lines.

    Args:
        source: as given.
        loaded: names in the model.
        resized: of these, with the grids.
        left_out: keys of the checkpoint that belong to its own model alone.
    """

    source: str
    loaded: tuple[str, ...]
    resized: tuple[str, ...]
    left_out: tuple[str, ...]

    def __str__(self) -> str:
        """A line for each kind."""
        lines = [f"{self.source}: {len(self.loaded)} tensors loaded"]
        if self.resized:
            lines.append(f"resized: {listed(list(self.resized), 4)}")
        if self.left_out:
            lines.append(f"left out: {listed(list(self.left_out), 4)}")
        return "\n".join(lines)


def load_reference_checkpoint(
    model: nn.Module,
    state: Mapping[str, Any],
    *,
    source: str,
    grid: tuple[int, int] | None = None,
) -> LoadedCheckpoint:
    """Loads a checkpoint of a paper's own code into a patched model, in place.

    | source | the model is patched with | what is loaded |
    |---|---|---|
    | "irpe" (DeiT models of microsoft/Cream) | `irpe` and their options | all of it |
    | "beit" (BEiT and BEiT v2; also timm's) | `beit` | all of it |
    | "rope_vit" (also timm's) | `rope_mixed`; or `rope`, `convention="rope_vit"` | all of it |
    | "transreid_relative" (SeongSuKim95's) | `swin` | all but its classifier |
    | "swin", also timm's | `swin` | the tables |
    | "swin_v2", also timm's | `cpb+cosine` | the networks and scales |
    | "convit", also timm's | `convit`, in as many blocks as it has gates | weights and gates |
    | "cpvt" (and Twins; also timm's) | `peg`, as many as it has | the convolutions |

    The first four are plain vision transformers: their layers go to those of the same name in a
    timm model, and every tensor of the model must be there. Of the others only the encodings are
    loaded, in order; what else their models have is named in the result.

    On another grid tables are resampled as the source does: absolute tables bicubically without
    antialias, BEiT's tables by its splines, Swin's bicubically; "transreid_relative" has no rule
    for its tables. Rotary frequencies, networks and convolutions have no size, and iRPE computes
    its buckets anew.

    Some options leave no trace in a checkpoint, and a wrong one loads without a word: iRPE's ratio
    and, where the number of buckets is the same, its method; the temperature of axial rotary; the
    grid of Swin V2's pretraining (`pretrained=`); and the number of heads, where no tensor has an
    axis of heads (axial rotary, mixed rotary under its published names, iRPE's bias that heads
    share). Build and patch as the published model was built.

    Everything is checked first: after an exception the model is as it was. Devices, dtypes and
    `requires_grad` of the model stay.

    >>> import timm, posenc
    >>> from timm.models.beit import Beit
    >>> sizes = dict(img_size=32, embed_dim=16, depth=2, num_heads=2, num_classes=5)
    >>> theirs = Beit(**sizes, use_abs_pos_emb=False, use_rel_pos_bias=True)
    >>> vit = timm.models.VisionTransformer(**sizes, pos_embed="none", global_pool="avg")
    >>> model = posenc.patch_model(vit, "beit")
    >>> print(load_reference_checkpoint(model, theirs.state_dict(), source="beit"))
    beit: 33 tensors loaded

    Args:
        model: a patched model.
        state: names and tensors; also within the wrappers of training scripts ("model",
            "state_dict", "module"), or with "module." before each name.
        source: one of the table.
        grid: height and width in patches of the images, or windows, that the checkpoint was made
            for; default: those of the model. No grid is guessed from a number of entries.

    Raises:
        TypeError: the model is no module, or the state no mapping of tensors.
        ValueError: an unknown source; a state of another one; a model that is not patched, or with
            other encodings or options (with what to patch); another depth, width or grid; or keys
            that only the checkpoint or only the model has. All of these are listed.

    Returns:
        What was loaded, resized and left out.
    """
    check_module(model)
    chosen, given = _source(source), checked_grid(grid)
    reading = _reading(model, chosen, state)
    if find_patched(model) is None:
        raise ValueError(
            f"{type(model).__name__} is not patched, and the checkpoint needs encodings: call "
            f"{patch_call(reading.needs)} first"
        )
    fit = _fitted(patched_backbone(model), chosen, reading, given)
    copy_values(fit)
    loaded = tuple(name for name in fit.target if name in fit.values)
    return LoadedCheckpoint(chosen.name, loaded, tuple(fit.resized), tuple(fit.left_out))


def _source(name: Any) -> Source:
    if name in SOURCES:
        return SOURCES[name]
    hint = did_you_mean(difflib.get_close_matches(str(name), SOURCES, n=1))
    raise ValueError(f"unknown source {name!r}.{hint} There are: {', '.join(SOURCES)}")


def _reading(model: nn.Module, source: Source, state: Any) -> Reading:
    backbone = find_patched(model) or model
    names = frozenset(backbone.state_dict())
    return read(source, source.prepare(checked_state(state), names))


def _fitted(backbone: Any, source: Source, reading: Reading, given: Grid | None) -> Fit:
    """All checks."""
    record: PatchRecord = backbone._posenc_record
    check_patched(backbone, source, reading.needs)
    places = places_of(backbone, reading.needs)
    if source.layers:
        check_sizes(backbone, reading)
        _check_not_hidden(record.hidden, reading)
    target = _loadable(backbone, record.hidden)
    fit = Fit(target)
    names = fit_tables(fit, source, reading, places, given)
    fit_others(fit, source, reading, _layout_of_table(backbone, record), given)
    check_fit(fit, source, set(target) if source.layers else names)
    return fit


def _layout_of_table(backbone: Any, record: PatchRecord) -> TokenLayout | None:
    """Of the model's absolute table, which the layout of a patch may differ from."""
    if record.layout is None:
        return None
    layout = record.layout.default()
    embedding = getattr(backbone, "patch_embed", None)
    height, width = getattr(embedding, "grid_size", None) or layout.grid
    return TokenLayout(height, width, layout.prefix)


def _check_not_hidden(hidden: str | None, reading: Reading) -> None:
    if hidden in reading.others:
        raise ValueError(
            f"the model's {hidden} is hidden, and the checkpoint has one: patch with "
            'absolute="keep"'
        )


def _loadable(backbone: nn.Module, hidden: str | None) -> dict[str, Tensor]:
    """What the model computes with: a hidden table is not."""
    found = tensors_of(backbone)
    for name, value in found.items():
        if value.is_meta:
            raise ValueError(f"the model's {name} is on the meta device: model.to_empty(...) first")
    return {name: value for name, value in found.items() if name != hidden}
