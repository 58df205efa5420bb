"""Lesions: connected components of classes, with their sizes, places, diameters and intensities."""
