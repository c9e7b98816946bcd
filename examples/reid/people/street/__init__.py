"""People in a street: dark clothes, soft and crowded photos."""
