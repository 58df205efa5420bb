"""Masks as polygons: ``segpipe polygons``."""
