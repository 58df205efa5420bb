"""Values that settings choose from, without the libraries that check settings: ``--help`` names them, and is quick."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

Blend = Literal["gaussian", "cosine", "linear", "constant", "crop"]
BLENDS: tuple[Blend, ...] = get_args(Blend)

Precision = Literal["auto", "fp32", "bf16", "int8"]
Executor = Literal["serial", "processes", "dask"]


def executor_of(chosen: Mapping[str, Any]) -> Executor:
    """The executor by the settings that a user chose: Dask where a cluster is named, or Dask's dashboard and no executor.

    >>> executor_of({}), executor_of({"dashboard": ":0"}), executor_of({"executor": "serial", "dashboard": ":0"})
    ('processes', 'dask', 'serial')
    """
    if chosen.get("scheduler") is not None or chosen.get("cluster") is not None:
        return "dask"
    executor: Executor = chosen.get("executor", "dask" if "dashboard" in chosen else "processes")
    return executor


OverlapRule = Literal["first", "newest", "confidence"]
RULES: tuple[OverlapRule, ...] = get_args(OverlapRule)

AUDITED = 20
"""Windows that ``--audit`` lists unless it says how many."""
