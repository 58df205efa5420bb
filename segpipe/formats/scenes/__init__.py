"""Scenes of many files: products of Sentinel-2, Landsat and HLS, and files of one band each; one case per scene."""
