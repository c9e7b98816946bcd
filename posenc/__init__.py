"""Positional encodings for vision transformers."""

from posenc.attention import attend, explain
from posenc.encodings import (
    IRPE,
    PEG,
    AttentionEncoding,
    HumanPart,
    LearnedAbsolute,
    Quadratic,
    Sinusoidal,
    SwinBias,
    TokenEncoding,
)
from posenc.layout import TokenLayout
from posenc.patching import (
    encoding_config,
    encoding_parameters,
    encoding_state_dict,
    fold_biases,
    is_patched,
    load_encodings,
    patch_model,
    patched_encodings,
    register_attention,
    save_encodings,
    set_layout,
    summary,
    supports,
    unpatch_model,
)
from posenc.registry import create_encoding, list_encodings

__all__ = [
    "IRPE",
    "PEG",
    "AttentionEncoding",
    "HumanPart",
    "LearnedAbsolute",
    "Quadratic",
    "Sinusoidal",
    "SwinBias",
    "TokenEncoding",
    "TokenLayout",
    "attend",
    "create_encoding",
    "encoding_config",
    "encoding_parameters",
    "encoding_state_dict",
    "explain",
    "fold_biases",
    "is_patched",
    "list_encodings",
    "load_encodings",
    "patch_model",
    "patched_encodings",
    "register_attention",
    "save_encodings",
    "set_layout",
    "summary",
    "supports",
    "unpatch_model",
]
