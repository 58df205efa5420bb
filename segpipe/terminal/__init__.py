"""What people read: progress, tables and the log of events."""
