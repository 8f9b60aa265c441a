"""Rewards of a full-precision model, computed once and stored."""
