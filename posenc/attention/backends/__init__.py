"""Ways to compute an attention call, one file each; a backend knows no other."""
