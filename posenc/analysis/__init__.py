"""What position does in a model: attention as it is computed, and what encodings have learned."""

from posenc.analysis.block_tokens import BlockTokens, block_tokens
from posenc.analysis.capture import capture_attention
from posenc.analysis.cka import linear_cka
from posenc.analysis.crops import crops_of
from posenc.analysis.distance import mean_attention_distance
from posenc.analysis.effective_rank import effective_rank
from posenc.analysis.entropy import attention_entropy
from posenc.analysis.fourier import fourier_log_amplitude
from posenc.analysis.gradient_rollout import gradient_rollout
from posenc.analysis.logits import LogitShares, split_logits
from posenc.analysis.positions import bias_map, position_biases, position_similarity
from posenc.analysis.prefix_share import prefix_share
from posenc.analysis.probe import CoordinateProbe, coordinate_probe
from posenc.analysis.properties import invariance, monotonicity, symmetry
from posenc.analysis.recorder import CapturedAttention
from posenc.analysis.reshape import reshape_transform
from posenc.analysis.rollout import attention_rollout
from posenc.analysis.subspace import PositionSubspace, debias, position_subspace

__all__ = [
    "BlockTokens",
    "CapturedAttention",
    "CoordinateProbe",
    "LogitShares",
    "PositionSubspace",
    "attention_entropy",
    "attention_rollout",
    "bias_map",
    "block_tokens",
    "capture_attention",
    "coordinate_probe",
    "crops_of",
    "debias",
    "effective_rank",
    "fourier_log_amplitude",
    "gradient_rollout",
    "invariance",
    "linear_cka",
    "mean_attention_distance",
    "monotonicity",
    "position_biases",
    "position_similarity",
    "position_subspace",
    "prefix_share",
    "reshape_transform",
    "split_logits",
    "symmetry",
]
