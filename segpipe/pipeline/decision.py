"""The rule that turns scores into labels and confidence, in the arrays of the scores."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.contract import Contract
from segpipe.network.arrays import FLOAT, HOST, Array, Arrays
from segpipe.network.spec import Blended
from segpipe.pipeline.label_values import LabelValues

Labels = NDArray[np.uint8] | NDArray[np.uint16]

CONFIDENCE_TOP, CONFIDENCE_NODATA = 254, 255
"""Values of a confidence of 1, and of invalid pixels."""


@dataclass(frozen=True)
class Decision:
    """The rule that turns scores into labels, from the contract's task and the kind of scores that were blended."""

    contract: Contract
    blend_on: Blended
    arrays: Arrays = HOST
    """Library of the score arrays."""

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """uint8, or uint16 if a class id needs it."""
        if self.contract.task == "multilabel":
            return np.dtype(np.uint8)
        return np.dtype(np.uint8 if max(c.id for c in self.contract.mask_classes) < 255 else np.uint16)

    @property
    def nodata(self) -> int:
        """The nodata value of the mask, which is never a class id: 255, or 65535."""
        return int(np.iinfo(self.dtype).max)

    @property
    def bands(self) -> int:
        """Bands of the mask: one, or one per class for independent classes."""
        return len(self.contract.classes) if self.contract.task == "multilabel" else 1

    @cached_property
    def _ids(self) -> NDArray[Any] | None:
        """Class id of each output channel; None if ids and channel indices are equal."""
        channels = {c.channel: c.id for c in self.contract.classes}
        ids = [channels[k] for k in range(len(channels))]
        return None if ids == list(range(len(ids))) else np.array(ids, self.dtype)

    @cached_property
    def _order(self) -> list[int]:
        """Output channel of each band of a multilabel mask."""
        return [c.channel for c in self.contract.mask_classes]

    @property
    def needs_total(self) -> bool:
        """Whether labels need the summed weights: yes with a threshold, no for the most likely class or given labels."""
        return self.contract.task != "multiclass" and not self.contract.gives_labels

    @cached_property
    def _values(self) -> LabelValues:
        return LabelValues(self.contract, self.arrays)

    def only_winners(self, *, confidence: bool, audit: bool) -> bool:
        """Whether labels need no scores of classes that are not the most likely ones."""
        return self.contract.task == "multiclass" and not (self.contract.gives_labels or confidence or audit)

    def labels(
        self, sums: Array, total: Array | None, invalid: Array | None, channels: NDArray[np.intp] | None = None
    ) -> tuple[Array, Array]:
        """Labels ``(bands, *box)`` of score sums ``(classes, *box)`` and summed weights, and what ``refusal`` judges by.

        ``channels``: positions of the sums among the scores of a task with exclusive classes; None: all.
        """
        if self.contract.gives_labels:
            return self._given(sums, invalid)
        if self.contract.task == "multiclass":
            labels, best = self.arrays.most_likely(sums, self.dtype)
            finite = self._finite(best, invalid)
            labels = labels if channels is None else self.arrays.take(channels.astype(self.dtype), labels)
            labels = (labels if self._ids is None else self.arrays.take(self._ids, labels))[None]
        else:
            assert total is not None
            finite = self._finite(sums, invalid)
            labels = self._present(self.above(sums, total))
        if invalid is not None:
            self.arrays.fill(labels, invalid, self.nodata)
        return self.arrays.cast(labels, self.dtype), finite

    def _present(self, above: Array) -> Array:
        """Labels of where each class is: a band for each, or a map of regions, each over those before it."""
        xp = self.arrays.xp
        if self.contract.task != "regions":
            labels = self.arrays.cast(above, self.dtype)
            return xp.stack([labels[k] for k in self._order]) if self.bands > 1 else labels
        labels = xp.zeros_like(self.arrays.cast(above[:1], self.dtype))
        for one in sorted(self.contract.classes, key=lambda c: c.channel):
            self.arrays.fill(labels[0], above[one.channel], one.id)
        return labels

    def _given(self, values: Array, invalid: Array | None) -> tuple[Array, Array]:
        """Labels of label values ``(channels, *box)``, and the extremes of those that are no class's at a valid pixel."""
        ids, known = self._values.ids(values)
        wrong = ~known if invalid is None else ~known & ~invalid
        extremes = self._values.extremes(values, wrong)
        labels = self.arrays.xp.stack([ids[k] for k in self._order]) if self.bands > 1 else ids
        labels = self.arrays.cast(labels, self.dtype)
        if invalid is not None:
            self.arrays.fill(labels, invalid, self.nodata)
        return labels, extremes

    def refusal(self, found: Any) -> str | None:
        """Why the model's output cannot be taken, by what ``labels`` found, on the host; None if it can."""
        if self.contract.gives_labels:
            return self._values.refusal(found)
        if found:
            return None
        return (
            "the model's scores must be finite, got NaN or infinity at a valid pixel: "
            "check the contract's scaling and the model's precision"
        )

    def above(self, sums: Array, total: Array) -> Array:
        """Whether scores, as sums with their summed weights, exceed the threshold."""
        return sums > self._threshold * total

    def _finite(self, scores: Array, invalid: Array | None) -> Array:
        """Whether the scores of all valid pixels are finite; a 0-d array, so that the host need not wait for the device."""
        finite = self.arrays.xp.isfinite(scores)
        return (finite if invalid is None else finite | invalid).all()

    @property
    def _threshold(self) -> float:
        """The contract's threshold on the scale of the blended scores, rounded to float32."""
        p = self.contract.threshold
        return float(np.float32(p if self.blend_on == "probabilities" else np.log(p / (1 - p))))

    def confidence(self, sums: Array, total: Array, invalid: Array | None) -> Array:
        """Probability of each label as 0 to 254, shape ``(bands, *box)``; 255 where the pixel is invalid.

        Of regions, that of the least certain of them.
        """
        slabs = self._slabs(sums)
        totals = [total if isinstance(total, float) else total[slab] for slab in slabs]
        parts = [self._scaled(sums[:, slab], own) for slab, own in zip(slabs, totals, strict=True)]
        scaled = parts[0] if len(parts) == 1 else self.arrays.xp.concatenate(parts, 1)
        if invalid is not None:
            self.arrays.fill(scaled, invalid, CONFIDENCE_NODATA)
        return scaled

    def _slabs(self, sums: Array) -> list[slice]:
        """Slabs of a box along its first axis, so small that copies of their scores stay in the processor's cache."""
        length, plane = sums.shape[1], FLOAT.itemsize * len(sums) * math.prod(sums.shape[2:])
        thick = max(1, self.arrays.at_once // plane)
        return [slice(low, low + thick) for low in range(0, length, thick)]

    def _scaled(self, sums: Array, total: Array) -> Array:
        """Probability of each label as 0 to 254, of all pixels."""
        xp, mean = self.arrays.xp, sums / total
        if self.contract.task == "multiclass":
            probability = self._winner_probability(mean)[None]
        else:
            p = mean if self.blend_on == "probabilities" else self._sigmoid(mean)
            probability = xp.where(mean > self._threshold, p, 1 - p)
            probability = xp.stack([probability[k] for k in self._order]) if self.bands > 1 else probability
            probability = xp.amin(probability, 0)[None] if self.contract.task == "regions" else probability
        return self.arrays.cast(xp.round(xp.clip(probability, 0, 1) * CONFIDENCE_TOP), np.dtype(np.uint8))

    def counts(self, confidence: Array, differ: Array, invalid: Array | None) -> Array:
        """Valid pixels, the sum of their confidence over all bands, and those where tiles differ: int64, shape ``(3,)``."""
        xp = self.arrays.xp
        if invalid is None:
            valid = xp.ones_like(differ)
        else:
            valid, differ, confidence = ~invalid, differ & ~invalid, xp.where(invalid, xp.zeros_like(confidence), confidence)
        return xp.stack([values.sum(dtype=xp.int64) for values in (valid, confidence, differ)])

    def _winner_probability(self, mean: Array) -> Array:
        xp = self.arrays.xp
        best = xp.amax(mean, 0)
        return best if self.blend_on == "probabilities" else 1 / xp.exp(mean - best).sum(0)

    def _sigmoid(self, x: Array) -> Array:
        with np.errstate(over="ignore"):
            return 1 / (1 + self.arrays.xp.exp(-x))
