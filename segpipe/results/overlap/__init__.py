"""Ground that several cases of a run share: which of them counts there, in totals, in zones and in a mosaic."""
