"""Windows, their weights, the division into parts, grids and true areas: arithmetic in n dimensions that reads no file."""
