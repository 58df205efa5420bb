"""NRRD volumes; pynrrd parses their headers."""
