"""Latency, load time, memory and energy."""
