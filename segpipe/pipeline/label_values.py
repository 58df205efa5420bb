"""Label values that a network gives in place of scores, and the class ids that they stand for."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from segpipe.contract import Contract
from segpipe.network.arrays import FLOAT, Array, Arrays

WHOLE = np.dtype(np.int64)


@dataclass(frozen=True)
class LabelValues:
    """The values that a contract of labels knows, for arrays ``(channels, *box)`` in float32, which holds them exactly."""

    contract: Contract
    arrays: Arrays

    @cached_property
    def _ids(self) -> dict[int, int]:
        """Class id by label value."""
        if self.contract.task == "multiclass":
            return {c.channel: c.id for c in self.contract.classes}
        return {0: 0, 1: 1}

    @cached_property
    def _tables(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Class id by label value, and 1 where there is one; the last entry stands for all other values."""
        size = max(self._ids) + 2
        ids, known = np.zeros(size, np.int64), np.zeros(size, np.int64)
        for value, number in self._ids.items():
            ids[value], known[value] = number, 1
        return ids, known

    def ids(self, values: Array) -> tuple[Array, Array]:
        """Class ids of label values, and which values are those of a class; both of the shape of the values."""
        xp, arrays = self.arrays.xp, self.arrays
        ids, known = self._tables
        other = xp.full_like(values, len(ids) - 1)  # NaN is not within, either
        index = arrays.cast(xp.where((values >= 0) & (values < len(ids)), values, other), WHOLE)
        whole = arrays.cast(index, FLOAT) == values
        return arrays.take(ids, index), whole & (arrays.take(known, index) == 1)

    def extremes(self, values: Array, wrong: Array) -> Array:
        """The least and the largest value where ``wrong`` is true, shape ``(2,)``; infinity and its negative if nowhere."""
        xp = self.arrays.xp
        least, most = (xp.where(wrong, values, xp.full_like(values, end)) for end in (np.inf, -np.inf))
        return xp.stack([least.min(), most.max()])

    def refusal(self, extremes: NDArray[np.float32]) -> str | None:
        """Why labels cannot be taken, by their ``extremes``; None if they can."""
        found = list(dict.fromkeys(_shown(float(value)) for value in extremes))
        if extremes[0] > extremes[1]:
            return None
        known = sorted(self._ids)
        names = f"{known[0]} to {known[-1]}" if known == list(range(known[0], known[-1] + 1)) else ", ".join(map(str, known))
        between = " and perhaps others between them" if len(found) > 1 else ""
        return (
            f"label values must be those of the contract's classes, {names}, and the model gives "
            f"{' and '.join(found)}{between}: "
            "add a class for each, with its value as id, or as index beside an id of your own"
        )


def _shown(value: float) -> str:
    """
    >>> _shown(255.0), _shown(0.5)
    ('255', '0.5')
    """
    return str(int(value)) if value.is_integer() else f"{value:g}"
