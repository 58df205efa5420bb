"""The pipeline from opened cases and an ONNX model to labels, box by box."""
