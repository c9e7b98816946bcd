"""The encodings: one file per scheme."""

from posenc.encodings.base import AttentionEncoding, TokenEncoding
from posenc.encodings.human_part import HumanPart
from posenc.encodings.irpe import IRPE
from posenc.encodings.learned import LearnedAbsolute
from posenc.encodings.peg import PEG
from posenc.encodings.quadratic import Quadratic
from posenc.encodings.sinusoidal import Sinusoidal
from posenc.encodings.swin import SwinBias

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
]
