"""Checkpoint -> quantized bundle, without torch."""

from edge_prm_export.write_bundle import DEFAULT_SOURCE, RECIPES, export

__all__ = ["DEFAULT_SOURCE", "RECIPES", "export"]
