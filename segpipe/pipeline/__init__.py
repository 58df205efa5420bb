"""From opened cases and one ONNX model to labels, box by box."""
