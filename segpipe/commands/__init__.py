"""The commands of ``segpipe``: one file per command, named after it; heavy imports inside."""
