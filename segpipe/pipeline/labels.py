"""From score sums to labels and confidence."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.contract import Contract
from segpipe.network.arrays import HOST, Array, Arrays
from segpipe.settings import BlendOn

Labels = NDArray[np.uint8] | NDArray[np.uint16]

CONFIDENCE_NODATA = 255
CONFIDENCE_TOP = 254


@dataclass(frozen=True)
class Decision:
    """How scores become labels: the contract's task, and what was blended."""

    contract: Contract
    blend_on: BlendOn
    arrays: Arrays = HOST
    """What scores are."""

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """uint8, or uint16 where a class id needs it."""
        if self.contract.task == "multilabel":
            return np.dtype(np.uint8)
        return np.dtype(np.uint8 if max(c.id for c in self.contract.mask_classes) < 255 else np.uint16)

    @property
    def nodata(self) -> int:
        """A value of its own, never a class: 255, or 65535."""
        return int(np.iinfo(self.dtype).max)

    @property
    def bands(self) -> int:
        """Bands of the mask: one, or one per class for independent classes."""
        return len(self.contract.classes) if self.contract.task == "multilabel" else 1

    @cached_property
    def _ids(self) -> NDArray[Any] | None:
        """Class id of each output channel; None where they are the same."""
        channels = {c.channel: c.id for c in self.contract.classes}
        ids = [channels[k] for k in range(len(channels))]
        return None if ids == list(range(len(ids))) else np.array(ids, self.dtype)

    @cached_property
    def _order(self) -> list[int]:
        """Output channel of each band of a multilabel mask."""
        return [c.channel for c in self.contract.mask_classes]

    @property
    def needs_total(self) -> bool:
        """Whether labels need the summed weights: a threshold does, the most likely class does not."""
        return self.contract.task != "multiclass"

    def labels(self, sums: Array, total: Array | None, invalid: Array | None) -> tuple[Array, Array]:
        """Labels ``(bands, *box)`` of score sums ``(classes, *box)`` and summed weights ``box``; whether all were finite."""
        xp = self.arrays.xp
        if self.contract.task == "multiclass":
            labels, best = self.arrays.most_likely(sums, self.dtype)
            finite = self._finite(best, invalid)
            labels = (labels if self._ids is None else self.arrays.take(self._ids, labels))[None]
        else:
            assert total is not None
            finite = self._finite(sums, invalid)
            labels = self.arrays.cast(sums > self._threshold * total, self.dtype)
            labels = xp.stack([labels[k] for k in self._order]) if self.bands > 1 else labels
        if invalid is not None:
            self.arrays.fill(labels, invalid, self.nodata)
        return self.arrays.cast(labels, self.dtype), finite

    def _finite(self, scores: Array, invalid: Array | None) -> Array:
        """Whether the scores of all valid pixels are finite; an array without axes, which is not waited for here."""
        finite = self.arrays.xp.isfinite(scores)
        return (finite if invalid is None else finite | invalid).all()

    @property
    def _threshold(self) -> float:
        """The contract's threshold on the scale of what was blended, as float32 holds it."""
        p = self.contract.threshold
        return float(np.float32(p if self.blend_on == "probabilities" else np.log(p / (1 - p))))

    def confidence(self, sums: Array, total: Array, invalid: Array | None) -> Array:
        """Probability of the label that was given, 0 to 254, shape ``(bands, *box)``; 255 where invalid."""
        xp, mean = self.arrays.xp, sums / total
        if self.contract.task == "multiclass":
            likely = self._winner_probability(mean)[None]
        else:
            p = mean if self.blend_on == "probabilities" else self._sigmoid(mean)
            likely = xp.where(mean > self._threshold, p, 1 - p)
            likely = xp.stack([likely[k] for k in self._order]) if self.bands > 1 else likely
        scaled = self.arrays.cast(xp.round(xp.clip(likely, 0, 1) * CONFIDENCE_TOP), np.dtype(np.uint8))
        if invalid is not None:
            self.arrays.fill(scaled, invalid, CONFIDENCE_NODATA)
        return scaled

    def _winner_probability(self, mean: Array) -> Array:
        xp = self.arrays.xp
        best = xp.amax(mean, 0)
        return best if self.blend_on == "probabilities" else 1 / xp.exp(mean - best).sum(0)

    def _sigmoid(self, x: Array) -> Array:
        with np.errstate(over="ignore"):
            return 1 / (1 + self.arrays.xp.exp(-x))
