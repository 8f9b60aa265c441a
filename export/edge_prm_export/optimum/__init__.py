"""Checkpoints of other architectures, traced with optimum and torch."""
