"""What position encodings cost: the command `posenc bench`, and how all benchmarks measure."""
