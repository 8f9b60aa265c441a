"""ONNX Runtime: graphs of our own exporter and graphs that optimum traced."""
