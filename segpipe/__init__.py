"""Batch semantic segmentation of images too large for one forward pass."""

__version__ = "0.1.0"
