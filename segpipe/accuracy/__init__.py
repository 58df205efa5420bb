"""Honest areas and accuracy: samples of a map, their estimates, and maps against references."""
