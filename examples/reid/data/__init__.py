"""Data sets, and batches of their photos."""
