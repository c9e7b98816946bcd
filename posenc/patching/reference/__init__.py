"""Checkpoints of the papers' own code: a file for each source, and the door that reads them."""
