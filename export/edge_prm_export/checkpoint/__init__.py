"""Checkpoints: files, config, head, tokenizer and conventions."""
