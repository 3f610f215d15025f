"""Kinds of columns of the open matrix: a file each, and a line in registry.py."""
