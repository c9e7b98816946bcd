"""Who is found: features, rankings, scores."""
