"""n-dimensional arithmetic that reads no files: windows, weights, division into parts, grids and true areas."""
