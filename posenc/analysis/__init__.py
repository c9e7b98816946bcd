"""What position does in a model: attention as it is computed, and what encodings have learned."""

from posenc.analysis.capture import capture_attention
from posenc.analysis.crops import crops_of
from posenc.analysis.distance import mean_attention_distance
from posenc.analysis.fourier import fourier_log_amplitude
from posenc.analysis.gradient_rollout import gradient_rollout
from posenc.analysis.logits import LogitShares, split_logits
from posenc.analysis.positions import bias_map, position_biases, position_similarity
from posenc.analysis.recorder import CapturedAttention
from posenc.analysis.rollout import attention_rollout

__all__ = [
    "CapturedAttention",
    "LogitShares",
    "attention_rollout",
    "bias_map",
    "capture_attention",
    "crops_of",
    "fourier_log_amplitude",
    "gradient_rollout",
    "mean_attention_distance",
    "position_biases",
    "position_similarity",
    "split_logits",
]
