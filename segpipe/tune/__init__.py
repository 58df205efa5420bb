"""What other tiles, overlaps, batches and precisions would cost, and what labels they would give."""
