"""Output for people: progress, tables and the log of events."""
