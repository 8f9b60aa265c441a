"""Checkpoint -> quantized bundle, without torch."""

from edge_prm.source import DEFAULT_SOURCE
from edge_prm_export.write_bundle import RECIPES, export

__all__ = ["DEFAULT_SOURCE", "RECIPES", "export"]
