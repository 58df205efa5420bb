"""Results of a run: masks, records, parts of masks, and statistics."""
