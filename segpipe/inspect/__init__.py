"""What a model or a raster is, and what it would need, gathered without a run."""
