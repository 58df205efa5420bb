"""From a trained network of torch to a verified ONNX file that says what it needs and gives."""
