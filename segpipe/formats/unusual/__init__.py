"""Check a sample of a case's pixels against what the contract's scaling expects.

A network labels whatever it is given, so that a wrong scale raises no error. Quantiles of the sample are therefore compared
with the contract's mean and deviation, or its clip, and with the pixel type. Scenes differ by night, snow, water and clouds,
units by powers of ten; the limits lie between the two (docs/decisions/unusual-pixels.md).
"""
