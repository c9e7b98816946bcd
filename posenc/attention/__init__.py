"""Attention with position terms: one public call, one file per backend."""

from posenc.attention.api import Explanation, attend, attention_matrix, explain

__all__ = ["Explanation", "attend", "attention_matrix", "explain"]
