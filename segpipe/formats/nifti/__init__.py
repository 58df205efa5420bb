"""NIfTI volumes; nibabel reads their headers."""
