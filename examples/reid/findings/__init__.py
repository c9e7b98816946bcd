"""What came out, as pictures and tables."""
