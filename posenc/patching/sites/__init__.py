"""What a module does whose class a patch has swapped."""
