"""What a model, a raster or a volume is, and what it would need, gathered without a run."""
