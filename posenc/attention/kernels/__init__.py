"""Fused attention in Triton. `ops.py` is the door; it imports Triton when it is first called."""
