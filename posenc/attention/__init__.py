"""Attention with position terms: one public call, one file per backend."""

from posenc.attention.api import BackendName, Explanation, attend, attention_matrix, explain

__all__ = ["BackendName", "Explanation", "attend", "attention_matrix", "explain"]
