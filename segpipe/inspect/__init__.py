"""Inspection: facts about a model, a raster or a volume, and its requirements, gathered without a run."""
