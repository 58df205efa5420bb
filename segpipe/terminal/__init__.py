"""What people read: progress, tables, the log."""
