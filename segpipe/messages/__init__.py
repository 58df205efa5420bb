"""Text for people: escaped, without secrets, to streams that may fail."""
