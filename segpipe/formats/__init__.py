"""Files: which ones are cases, how one is opened, and what takes its mask. One folder per family of formats."""
