"""Texts of our own: calibration of quantizers, and golden trajectories."""
