"""Positional encodings for vision transformers."""

from posenc.attention import Explanation, attend
from posenc.encodings import *
from posenc.encodings import __all__ as _encodings
from posenc.functional.buckets import fit_buckets, pair_index
from posenc.layout import TokenLayout
from posenc.memo import clear_cache
from posenc.pairs import PairIndex
from posenc.patching import (
    LoadedCheckpoint,
    ModelExplanation,
    Summary,
    Support,
    encoding_config,
    encoding_parameters,
    encoding_state_dict,
    explain,
    fold_biases,
    is_patched,
    load_encodings,
    load_reference_checkpoint,
    parameter_groups,
    patch_from_config,
    patch_model,
    patched_encodings,
    register_attention,
    save_encodings,
    set_layout,
    summary,
    supports,
    train_only_encodings,
    unpatch_model,
)
from posenc.registry import create_encoding, list_encodings, register_encoding
from posenc.terms import (
    ContentScale,
    DenseBias,
    LookupBias,
    LowRankBias,
    MatrixRotation,
    Mixture,
    Rotation,
    ValueLookup,
)

__version__ = "0.1.0"

__all__ = [
    *_encodings,
    "ContentScale",
    "DenseBias",
    "Explanation",
    "LoadedCheckpoint",
    "LookupBias",
    "LowRankBias",
    "MatrixRotation",
    "Mixture",
    "ModelExplanation",
    "PairIndex",
    "Rotation",
    "Summary",
    "Support",
    "TokenLayout",
    "ValueLookup",
    "__version__",
    "attend",
    "clear_cache",
    "create_encoding",
    "encoding_config",
    "encoding_parameters",
    "encoding_state_dict",
    "explain",
    "fit_buckets",
    "fold_biases",
    "is_patched",
    "list_encodings",
    "load_encodings",
    "load_reference_checkpoint",
    "pair_index",
    "parameter_groups",
    "patch_from_config",
    "patch_model",
    "patched_encodings",
    "register_attention",
    "register_encoding",
    "save_encodings",
    "set_layout",
    "summary",
    "supports",
    "train_only_encodings",
    "unpatch_model",
]
