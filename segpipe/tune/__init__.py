"""Tuning: the speed of other tiles, overlaps, batches and precisions, and how their labels compare."""
