"""Layouts (height, width, prefix): not square, of one row and of one column, any prefix."""

LAYOUTS = [(2, 5, 0), (7, 4, 1), (1, 6, 2), (6, 1, 5)]
