"""Clean the labels of a case before they are counted: a majority filter, and a minimum mapping unit."""
