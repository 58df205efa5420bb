"""File formats: which files are cases, how a case is opened, and how its mask is written. One folder per family."""
