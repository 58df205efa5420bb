"""An ONNX model: its contract checked against its graph, its scaling, and the device that it runs on."""
