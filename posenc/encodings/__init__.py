"""The encodings: one file per scheme, named as the scheme is registered.

A new one is a line here: its class is then exported as `posenc.<Class>`, and `posenc.registry`
registers it under the name of its file.
"""

from posenc.encodings.alibi_2d import ALiBi2D as ALiBi2D
from posenc.encodings.base import AttentionEncoding as AttentionEncoding
from posenc.encodings.base import TokenEncoding as TokenEncoding
from posenc.encodings.beit import BEiT as BEiT
from posenc.encodings.body import Body as Body
from posenc.encodings.conv_projection import ConvProjection as ConvProjection
from posenc.encodings.convit import ConViT as ConViT
from posenc.encodings.cordonnier_learned import CordonnierLearned as CordonnierLearned
from posenc.encodings.cosine import CosineAttention as CosineAttention
from posenc.encodings.cpb import ContinuousBias as ContinuousBias
from posenc.encodings.deberta import DeBERTa as DeBERTa
from posenc.encodings.decomposed import Decomposed as Decomposed
from posenc.encodings.fire_2d import FIRE2D as FIRE2D
from posenc.encodings.fourier import FourierFeatures as FourierFeatures
from posenc.encodings.huang import Huang as Huang
from posenc.encodings.human_part import HumanPart as HumanPart
from posenc.encodings.irpe import IRPE as IRPE
from posenc.encodings.kerple_2d import KERPLE2D as KERPLE2D
from posenc.encodings.learned import LearnedAbsolute as LearnedAbsolute
from posenc.encodings.levit import LeViT as LeViT
from posenc.encodings.liere import LieRE as LieRE
from posenc.encodings.local_ffn import LocalFFN as LocalFFN
from posenc.encodings.lookhere import LookHere as LookHere
from posenc.encodings.lpu import LPU as LPU
from posenc.encodings.none import NoEncoding as NoEncoding
from posenc.encodings.pape import PaPE as PaPE
from posenc.encodings.peg import PEG as PEG
from posenc.encodings.quadratic import Quadratic as Quadratic
from posenc.encodings.relative_logits import RelativeLogits as RelativeLogits
from posenc.encodings.rope import RoPE as RoPE
from posenc.encodings.rope_mixed import RoPEMixed as RoPEMixed
from posenc.encodings.sasa import SASA as SASA
from posenc.encodings.shaw import Shaw as Shaw
from posenc.encodings.sinusoidal import Sinusoidal as Sinusoidal
from posenc.encodings.swin import SwinBias as SwinBias
from posenc.encodings.t5 import T5Bias as T5Bias
from posenc.encodings.transformer_xl import TransformerXL as TransformerXL
from posenc.encodings.tupe import TUPE as TUPE

BASES = (AttentionEncoding, TokenEncoding)

__all__ = [name for name, value in vars().items() if isinstance(value, type)]
