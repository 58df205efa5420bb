"""From input files and one ONNX model to label masks and areas."""
