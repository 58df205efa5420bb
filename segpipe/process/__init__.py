"""The process that segpipe runs in: signals, environment, processors, memory, and optional dependencies."""
