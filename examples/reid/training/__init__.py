"""A training that can be interrupted."""
