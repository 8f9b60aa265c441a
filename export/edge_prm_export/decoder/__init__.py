"""Decoder weights and exact transforms of them, in numpy."""
