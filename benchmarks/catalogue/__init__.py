"""Every family that ``segpipe export`` knows, small and with seeded random weights."""
