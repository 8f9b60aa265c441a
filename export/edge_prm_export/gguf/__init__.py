"""GGUF bundles for llama.cpp."""
