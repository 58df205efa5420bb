"""Batch semantic segmentation of images too large for one forward pass."""

import os

from segpipe.process.deferred import defer

# ONNX Runtime 1.29 and later keep a device id and events with the model's name under ~/.cache, and send them to their
# maker, unless this is set before the first import, in every process: workers inherit it.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

defer("boto3")  # rasterio imports it, which takes a quarter of the start, and only s3:// needs it

__version__ = "0.1.0"
