"""True labels of the boxes on which tune compares candidates."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segpipe.accuracy.class_map import class_map
from segpipe.accuracy.confusion import ClassMap, PairCounts, confusion_of
from segpipe.accuracy.evaluate import references
from segpipe.accuracy.labels import open_reference
from segpipe.array_types import Integers
from segpipe.errors import InputError, SettingsError
from segpipe.formats.case import Case
from segpipe.geometry.windows import Window
from segpipe.network.spec import ModelSpec
from segpipe.overrides import Overrides
from segpipe.tune.places import TunePlace, opened_checked


@dataclass(frozen=True)
class Truth:
    """References of cases, and what their values mean."""

    classes: ClassMap
    paths: dict[str, Path]

    def has(self, case: Case) -> bool:
        return case.name in self.paths

    def on(self, place: TunePlace, spec: ModelSpec, overrides: Overrides) -> "TrueLabels":
        """True labels of a box.

        Raises:
            InputError: the case is resampled, or its reference does not lie on the grid of the case.
            SourceError: the reference cannot be read.
        """
        assert place.case is not None
        with opened_checked(place.case, spec, overrides) as (source, info):
            if info.resampled:
                raise InputError(f"--reference needs cases of the model's pixel size, and {place.case.path} is resampled")
            window = place.window
            if place.plane is not None:
                window = Window((place.plane, *window.start), (place.plane + 1, *window.stop))
            window = window if info.box is None else window.moved(info.box.start)
            with open_reference(self.paths[place.case.name], source.grid) as reference:
                labels, valid = reference.read(window)
        shape = place.window.shape
        return TrueLabels(labels.reshape(shape), None if valid is None else valid.reshape(shape), self.classes)


@dataclass(frozen=True, eq=False)
class TrueLabels:
    """True labels of a box, and where they are known; None: everywhere."""

    labels: NDArray[np.generic]
    valid: NDArray[np.bool_] | None
    classes: ClassMap

    def confusion(self, box: tuple[slice, ...], seen: NDArray[np.bool_], mine: NDArray[np.generic]) -> Integers:
        """Pixels by true and mapped class, ``(classes, classes)``.

        Args:
            box: the part of the box that is compared.
            seen: where the case has pixels there.
            mine: labels of these pixels.
        """
        counts = PairCounts()
        known = None if self.valid is None else self.valid[box][seen]
        counts.add(self.labels[box][seen], mine, known)
        return confusion_of(counts, self.classes).matrix


def find_truth(place: Path, classes_file: Path | None, cases: Sequence[Case], spec: ModelSpec) -> Truth:
    """The references of the cases that have one.

    Raises:
        InputError: no case has one.
        SettingsError: the model gives no single class per pixel, or the file of classes cannot be used.
    """
    contract = spec.contract
    if contract.task == "multilabel":
        raise SettingsError('--reference needs one class per pixel, and the contract says task = "multilabel": leave it out')
    if not cases:
        raise InputError("--reference needs the scenes that it belongs to: give --input, too")
    classes = class_map({c.id: c.name for c in contract.mask_classes}, classes_file, ())
    return Truth(classes, references(place, [case.name for case in cases]))
