"""Quantizers: arrays in, integers and scales out."""
