"""Export a trained torch network to a verified ONNX file with its contract inside."""
