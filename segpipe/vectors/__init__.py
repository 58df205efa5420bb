"""Polygons of vector files, and where they lie on a grid."""
