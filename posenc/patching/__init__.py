"""Putting encodings into models, and taking them out again."""

from posenc.patching.checkpoint import (
    encoding_parameters,
    encoding_state_dict,
    load_encodings,
    patched_encodings,
    save_encodings,
)
from posenc.patching.config import encoding_config, patch_from_config
from posenc.patching.explain import ModelExplanation, explain
from posenc.patching.fold import fold_biases
from posenc.patching.models.registered import register_attention
from posenc.patching.patch import is_patched, patch_model, unpatch_model
from posenc.patching.reference.door import LoadedCheckpoint, load_reference_checkpoint
from posenc.patching.report import Summary, Support, summary, supports
from posenc.patching.resize import set_layout
from posenc.patching.training import parameter_groups, train_only_encodings

__all__ = [
    "LoadedCheckpoint",
    "ModelExplanation",
    "Summary",
    "Support",
    "encoding_config",
    "encoding_parameters",
    "encoding_state_dict",
    "explain",
    "fold_biases",
    "is_patched",
    "load_encodings",
    "load_reference_checkpoint",
    "parameter_groups",
    "patch_from_config",
    "patch_model",
    "patched_encodings",
    "register_attention",
    "save_encodings",
    "set_layout",
    "summary",
    "supports",
    "train_only_encodings",
    "unpatch_model",
]
