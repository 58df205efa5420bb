"""The process that segpipe runs in: its signals, environment, processors and memory, and what is installed."""
