"""Values that settings choose from, without the libraries that check settings: ``--help`` names them, and is quick."""

from typing import Literal, get_args

Blend = Literal["gaussian", "cosine", "linear", "constant", "crop"]
BLENDS: tuple[Blend, ...] = get_args(Blend)

Precision = Literal["auto", "fp32", "bf16", "int8"]
Executor = Literal["serial", "processes", "dask"]

OverlapRule = Literal["first", "newest", "confidence"]
RULES: tuple[OverlapRule, ...] = get_args(OverlapRule)

AUDITED = 20
"""Windows that ``--audit`` lists unless it says how many."""
