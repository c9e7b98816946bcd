"""Which encoding? The parts of the comparison that `which_encoding.py` runs."""
