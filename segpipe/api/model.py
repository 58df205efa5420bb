"""A model, loaded once, that labels arrays."""

import os
import threading
from collections.abc import Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from segpipe.api.arrays import NAME, checked
from segpipe.api.labels import LabelMetadata, Labels
from segpipe.contract import Contract
from segpipe.errors import DeviceError, SettingsError
from segpipe.formats.case import Case
from segpipe.messages.printable import and_more, counted, dims
from segpipe.network.read import read_spec
from segpipe.network.spec import ModelSpec
from segpipe.pipeline.agreement import compare_engine
from segpipe.pipeline.decide import Boxes
from segpipe.pipeline.decision import CONFIDENCE_NODATA, Decision
from segpipe.pipeline.infer import LoadedModel as Network
from segpipe.pipeline.infer import load_model as open_model
from segpipe.pipeline.model_check import try_out
from segpipe.pipeline.read import Reading
from segpipe.pipeline.run import segmented
from segpipe.process.machine import processors
from segpipe.results.cleaning.cleaner import MaskForm
from segpipe.results.cleaning.rule import Cleaning
from segpipe.results.cleaning.stage import cleaned_arrays
from segpipe.settings import Settings, load_settings

SETTINGS = (
    "contract",
    "tile",
    "overlap",
    "blend",
    "blend_on",
    "tta",
    "batch",
    "device",
    "precision",
    "min_agreement",
    "tf32",
    "nhwc",
    "threads",
    "unusual_values",
)
"""Settings that belong to a loaded model; all others belong to a run."""

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""One path or several."""

_RUN_SETTINGS = Settings.model_fields.keys() - {*SETTINGS}


class Model:
    """A network and its contract; ``segpipe.load`` makes one.

    >>> import segpipe
    >>> model = segpipe.load("examples/crops.onnx")
    >>> model.channels, model.tile, model.classes[0]
    (4, (256, 256), 'water')
    """

    def __init__(self, spec: ModelSpec, settings: dict[str, Any]) -> None:
        self._network = _OpenNetwork(spec)
        self.settings = settings
        """The settings that the model was loaded with, ``model`` among them."""
        self._calls = max(1, processors() // spec.threads) if spec.on_host else 1
        self._alone = nullcontext() if spec.on_host else threading.Lock()

    @property
    def spec(self) -> ModelSpec:
        """Everything known about the file."""
        return self._network.spec

    def __reduce__(self) -> tuple[type["Model"], tuple[ModelSpec, dict[str, Any]]]:
        """A copy, as for a task of Dask, opens the files where it arrives, which must be the same."""
        places: dict[str, Any] = {"model": tuple(str(Path(path).absolute()) for path in self.settings["model"])}
        if (contract := self.settings.get("contract")) is not None:
            places["contract"] = str(Path(contract).absolute())
        return Model, (self.spec.located(), self.settings | places)

    @property
    def contract(self) -> Contract:
        """Channels, scaling, tile and classes."""
        return self.spec.contract

    @property
    def channels(self) -> int:
        """Length of the first axis of an array for ``predict``."""
        return self.contract.channel_count

    @property
    def tile(self) -> tuple[int, ...]:
        """Size of the tiles in pixels or voxels, by axis."""
        return self.spec.tiling.input

    @property
    def overlap(self) -> tuple[int, ...]:
        """Least overlap of neighbouring tiles, by axis."""
        return self.spec.tiling.overlap

    @property
    def classes(self) -> dict[int, str]:
        """Name of each class, by id."""
        return {one.id: one.name for one in self.contract.mask_classes}

    def predict(
        self,
        array: Any,
        valid: Any = None,
        *,
        confidence: bool = False,
        majority: int | None = None,
        sieve: int | str | None = None,
    ) -> Labels:
        """Label an image or a volume in memory: tile by tile, blended as in a run, with the same labels.

        Args:
            array: pixels as they are stored in a file, before the contract's scaling, shape ``(channels, rows, cols)``; or
                ``(channels, planes, rows, cols)``, which a model of images takes slice by slice. Integers or floats, of any
                size; a memory map is read box by box. Pixel size and orientation must be those of the contract.
            valid: booleans of shape ``(rows, cols)`` or ``(planes, rows, cols)``, False where there is no data. NaN and
                infinity in any channel are not valid, either. None: all other pixels are.
            confidence: also give the probability of each label.
            majority: side of the window of a majority filter, an odd number of pixels, as of a run; None: no filter.
            sieve: least size of a region in pixels, as of a run; smaller ones take the label of their largest neighbour.

        Returns:
            Labels with the shape of the array without its channels; pixels that are not valid are ``labels.nodata``. Beside
            array and labels it takes memory for one row of tiles; cleaning takes that of the labels once or twice more.

        Raises:
            SettingsError: confidence was asked for of a model that gives labels; a rule of cleaning cannot be.
            SourceError: the array's type, shape or values do not fit the contract.
            ModelError: the network fails, or gives scores that are not finite.
            DeviceError: the model is on a GPU, and was loaded before this process was forked.

        Several threads may call it at once, and so may forks of the process that loaded the model, but not on a GPU.

        >>> import numpy as np
        >>> image = np.full((4, 300, 500), 900, np.uint16)
        >>> valid = np.ones((300, 500), bool)
        >>> valid[:, :100] = False
        >>> labels = model.predict(image, valid)
        >>> labels.array.shape, int((labels.array == labels.nodata).sum())
        ((300, 500), 30000)
        """
        if confidence and self.contract.gives_labels:
            raise SettingsError(
                f'confidence needs scores, and {self.spec.title} gives labels (activation = "labels"): leave it out'
            )
        rule = self._cleaning(majority, sieve)
        source = checked(array, valid, self.spec)
        decision = Decision(self.contract, self.spec.blend_on)
        shape = (decision.bands, *source.grid.shape)
        bands = np.full(shape, decision.nodata, decision.dtype)
        likely = np.full(shape, CONFIDENCE_NODATA, np.uint8) if confidence else None
        allow = self.settings.get("unusual_values") == "allow"
        reading = Reading(self.spec, source=source, allow_unusual=allow)
        case = Case(NAME, NAME)
        network = self._network.here()
        with self._alone, closing(segmented([case], reading, network, self._calls, confidence=confidence)) as cases:
            for _, boxes in cases:
                _fill(boxes, bands, likely)
        if rule is not None:
            form = MaskForm.of(decision, confidence=confidence)
            bands, likely = cleaned_arrays(bands, likely, source.grid, rule, form)
        return Labels.of_bands(bands, likely, LabelMetadata.of_contract(self.contract, decision.nodata, source.grid))

    def _cleaning(self, majority: int | None, sieve: int | str | None) -> Cleaning | None:
        """The rule of cleaning, checked as that of a run."""
        if majority is None and sieve is None:
            return None
        given = {"input": (NAME,), "model": self.settings["model"], "majority": majority, "sieve": sieve}
        settings = load_settings(None, given, "predict")
        return Cleaning.of(settings.majority, settings.sieve)

    def __repr__(self) -> str:
        names = self.contract.channel_names
        channels = f"{counted(self.channels, 'channel')}" + ("" if names is None else f" ({and_more(names, 8)})")
        classes = f"{counted(len(self.classes), 'class')} ({and_more(list(self.classes.values()), 8)})"
        sizes = f"tile {dims(self.tile)}, overlap {dims(self.overlap)}"
        return f"Model {self.spec.title}: {channels} to {classes}, {sizes}, on {self.spec.device}"


class _OpenNetwork:
    """A network that is open in this process."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self._model, self._process = open_model(spec), os.getpid()
        self._of_parent: list[Network] = []
        """Networks of the parent of a fork. They stay open: closing them would wait for threads that the fork lacks."""

    def here(self) -> Network:
        """The network of this process; a fork opens its own.

        Raises:
            DeviceError: it is on a GPU, which a fork cannot use.
        """
        if self._process == os.getpid():
            return self._model
        if not self.spec.on_host:
            raise DeviceError(
                f"a process that is forked cannot use {self.spec.device} as its parent does: start processes by the method "
                '"spawn", or call segpipe.load in each'
            )
        with _reopening:
            if self._process != os.getpid():
                self._of_parent.append(self._model)
                self._model, self._process = open_model(self.spec), os.getpid()
        return self._model


_reopening = threading.Lock()


def _fill(boxes: Boxes, bands: Any, likely: Any) -> None:
    with closing(boxes):
        for box in boxes:
            where = (slice(None), *box.window.slices)
            bands[where] = box.labels
            if likely is not None:
                likely[where] = box.confidence


def paths(given: Paths) -> tuple[str, ...]:
    """One path or several as a list of texts."""
    several = [given] if isinstance(given, str | os.PathLike) else given
    return tuple(os.fspath(path) for path in several)


def load(model: Paths, **settings: Any) -> Model:
    """Load an ONNX model with its contract and try it on noise; or load several, whose scores are averaged.

    Args:
        model: the file, or several. Its contract is in it, or in a ``.toml`` file of the same name beside it.
        settings: those of a configuration file that concern the model: ``contract``, ``tile``, ``overlap``, ``blend``,
            ``blend_on``, ``tta``, ``batch``, ``device``, ``precision``, ``min_agreement``, ``tf32``, ``nhwc``, ``threads``,
            ``unusual_values``.

    Raises:
        SettingsError: a setting is unknown, or does not fit.
        ContractError: there is no contract, or it does not fit the model.
        ModelError: the file cannot be read, or its scores are not what the contract says.
        DeviceError: the device is missing.
    """
    if theirs := [key for key in settings if key in _RUN_SETTINGS]:
        raise SettingsError(f"segpipe.load: {theirs[0]} is a setting of a run: give it to segpipe.run")
    chosen = {"model": paths(model), **settings}
    asked = load_settings(None, {"input": (NAME,), **chosen}, "segpipe.load")
    spec = compare_engine(try_out(read_spec(asked), keep=True))
    return Model(spec, chosen)
