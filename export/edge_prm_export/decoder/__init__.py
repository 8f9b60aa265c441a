"""Decoder weights by role, exact transforms of them, and a run in full precision, in numpy. Knows no file format."""
