"""Text on its way to people: escaped, without secrets, to streams that may fail."""
