"""Georeferenced rasters and plain pictures, read and written by GDAL."""
