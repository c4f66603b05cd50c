"""What runs a graph: ONNX Runtime or torch."""
