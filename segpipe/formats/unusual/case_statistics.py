"""Pixels that no statistics help: of one value, squeezed by outliers, or of a nodata value that is not declared."""

from collections.abc import Iterator
from functools import partial

import numpy as np

from segpipe.contract import Contract
from segpipe.formats.unusual.values import Expected, Finding, Values, channel_name, where
from segpipe.network.scaling import Scaling

SQUEEZED = 0.02
"""Share of a case's range within which 98 % of its pixels are squeezed by outliers."""

SENTINELS, NO_DATA, HUGE = (-9999.0, -99999.0, -32767.0, -32768.0), -9999.0, -1e30
"""Values that products use for nodata; the largest of them; and the limit below which any value is nodata."""


def constant(values: Values, expected: Expected) -> Iterator[Finding]:
    """Yield a finding on bands whose sampled pixels are all equal."""
    same = values.least == values.most
    if same.any():
        equal = ", ".join(f"{expected.name(i)} ({values.least[i]:g})" for i in where(same))
        yield Finding(f"all sampled pixels are equal in {equal}: is that band empty?")


def sentinel(values: Values, contract: Contract, mend: str) -> Iterator[Finding]:
    """Yield a value that many products use for nodata, and that the file does not declare."""
    for i in where((values.low == values.least) & (values.low < values.mid)):
        if (value := values.least[i]) in SENTINELS or value <= HUGE:
            yield Finding(
                f"1 % or more of the sampled pixels of {channel_name(contract, i)} hold {value:.9g}, which looks like "
                f"nodata that the file does not declare: {mend}"
            )
            return


def of_own_statistics(values: Values, contract: Contract, scaling: Scaling) -> Iterator[Finding]:
    """Yield useless statistics of a case: of a channel without spread, or dominated by a few outliers."""
    if contract.scaling == "graph":
        return
    name = partial(channel_name, contract)
    flat = where(scaling.gain == 0)
    if flat:
        yield Finding(
            f"all valid pixels of {', '.join(map(name, flat))} are equal, and {contract.normalizations[flat[0]]} makes them "
            "0: is that band empty?"
        )
    if contract.clip_percentiles is None and contract.range_percentiles is None:
        spread = (values.high - values.low) * scaling.gain
        squeezed = np.array([one == "minmax" for one in contract.normalizations]) & (spread < SQUEEZED) & (spread > 0)
        for i in where(squeezed):
            ends = [f"{(end - scaling.bias[i]) / scaling.gain[i] + 0:.6g}" for end in (0, 1)]
            yield Finding(
                f"98 % of the sampled pixels of {name(i)} lie within {spread[i]:.1%} of the case's range, "
                f"{' to '.join(ends)}: a few outliers stretch minmax, mark them as nodata"
            )
