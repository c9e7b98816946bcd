"""Pedestrians that a program draws."""
