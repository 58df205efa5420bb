"""ONNX models: contract checked against graph, pixel scaling, and the device that runs them."""
