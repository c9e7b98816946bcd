"""What is known of models, and how one is examined."""
