"""What a run leaves: masks, records, parts of masks, and areas."""
