"""NIfTI volumes, read by nibabel's headers."""
