"""Checkpoint -> quantized bundle, without torch."""

from edge_prm.source import DEFAULT_SOURCE
from edge_prm_export.exporter import export
from edge_prm_export.recipes import GGUF_TYPES, RECIPES

__all__ = ["DEFAULT_SOURCE", "GGUF_TYPES", "RECIPES", "export"]
