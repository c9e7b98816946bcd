"""The network, and what it is trained with."""
