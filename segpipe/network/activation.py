"""Check that scores match the contract's ``activation``: by the end of the graph, then by a trial run."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.contract import Contract
from segpipe.errors import ContractError
from segpipe.network.ending import UNIT, Ending
from segpipe.network.noise import loud_tiles
from segpipe.network.spec import ModelSpec

Raw = Callable[[NDArray[Any]], NDArray[Any]]
"""A model without its output graph: raw output for a batch ``(batch, channels, *tile)``."""

ROUNDING = 1e-3
"""Tolerance by which probabilities of fp16 and int8 networks may leave [0, 1]."""

SUM_ROUNDING = 0.02
"""Tolerance of the sum of a pixel's probabilities, to which half a step of 8 bits is added for each class."""


def check_activation(spec: ModelSpec, scores: NDArray[np.float32], raw: Raw) -> None:
    """Check that the scores suit the contract's ``activation``: logits, or probabilities for ``none``.

    The last operators of the graph decide where they are conclusive: logits of noise may lie within [0, 1] by chance.
    Otherwise scores of noise decide, and where these may be chance, scores of far larger values.

    Args:
        spec: the model.
        scores: scores of noise, ``(batch, classes, *sizes)``, before any activation.
        raw: the model, for one more call where scores of noise are inconclusive.

    Raises:
        ContractError: the activation is wrong; the message gives the right value.
    """
    if spec.contract.gives_labels:
        _check_labels(spec, scores)
        return
    if not np.isfinite(scores).all():
        return  # a run refuses them anyway
    trial = _Trial(spec, scores, raw)
    if spec.contract.activation == "none":
        _check_probabilities(trial)
    else:
        _check_logits(trial)


class _Trial:
    """Scores of noise and their properties."""

    def __init__(self, spec: ModelSpec, scores: NDArray[np.float32], raw: Raw) -> None:
        self.spec, self.contract, self.scores, self._raw = spec, spec.contract, scores, raw
        self.ending: Ending = spec.ending
        self.low, self.high = float(scores.min()), float(scores.max())

    @property
    def sums(self) -> tuple[float, float]:
        """Least and largest sum of a pixel's scores."""
        sums = self.scores.sum(axis=1, dtype=np.float32)
        return float(sums.min()), float(sums.max())

    @property
    def sums_to_1(self) -> bool:
        count = self.scores.shape[1]
        tolerance = SUM_ROUNDING + min(count / 512, 0.2)
        return count > 1 and all(abs(n - 1) <= tolerance for n in self.sums)

    @property
    def is_constant(self) -> bool:
        return self.high - self.low < ROUNDING

    @property
    def is_within(self) -> bool:
        """Whether scores of noise lie within [0, 1]."""
        return _within(self.low, self.high)

    def is_always_within(self) -> bool:
        """Whether scores of far larger values also lie within [0, 1], as logits would not."""
        loud = by_class(self._raw(loud_tiles(self.spec, self.spec.batch)), self.spec)
        return self.is_within and bool(np.isfinite(loud).all()) and _within(float(loud.min()), float(loud.max()))

    @property
    def evidence(self) -> str:
        return f"{self.low:.3g} to {self.high:.3g} on noise; {self.ending}"


def _within(low: float, high: float) -> bool:
    return low >= UNIT[0] - ROUNDING and high <= UNIT[1] + ROUNDING


def _check_logits(trial: _Trial) -> None:
    """Under ``sigmoid`` and ``softmax``, refuse probabilities; under ``sigmoid``, refuse their logarithms too."""
    activation, ending, path = trial.contract.activation, trial.ending, trial.spec.path
    sure = ending.is_probability or (trial.is_within and trial.sums_to_1)
    if sure or (ending.range is None and activation == "sigmoid" and not trial.is_constant and trial.is_always_within()):
        raise ContractError(
            f'{path}: activation = "{activation}" is for logits, and its scores are probabilities already, '
            f'{trial.evidence}: set activation = "none" in the contract{_and_task(trial.contract, ending)}'
        )
    if activation == "sigmoid" and ending.range is not None and ending.range[1] <= 0:
        raise ContractError(
            f'{path}: activation = "sigmoid" is for logits, and its scores can never be above 0, as logarithms of '
            f"probabilities ({ending}): export it without the logarithm"
        )


def _and_task(contract: Contract, ending: Ending) -> str:
    if contract.task != "multiclass" or not ending.operator.endswith("Sigmoid"):
        return ""
    return ', and task = "multilabel" if its classes do not exclude each other'


def _check_probabilities(trial: _Trial) -> None:
    """Under ``none``, scores must lie in [0, 1]; for exclusive classes they sum to 1, unless each has its own sigmoid."""
    contract, ending, path = trial.contract, trial.ending, trial.spec.path
    logits = "softmax" if contract.task == "multiclass" else "sigmoid"
    if not ending.is_probability and not trial.is_always_within():
        raise ContractError(
            f'{path}: activation = "none" says that scores are probabilities, and they are not, {trial.evidence}: '
            f'set activation = "{logits}" in the contract'
        )
    if contract.task != "multiclass" or trial.scores.shape[1] < 2 or trial.sums_to_1:
        return
    least, most = trial.sums
    if ending.operator.endswith("Softmax"):
        raise ContractError(
            f"{path}: a pixel's probabilities must sum to 1, and sum to {least:.3g} to {most:.3g}, though {ending}: "
            "it runs over another axis than the classes, or some of these are cut off: export it with Softmax over all"
        )
    if not ending.is_probability:
        raise ContractError(
            f'{path}: activation = "none" of task = "multiclass" says that a pixel\'s scores sum to 1, and they sum to '
            f'{least:.3g} to {most:.3g} on noise; {ending}: set activation = "softmax" in the contract, or '
            'task = "multilabel" if its classes do not exclude each other'
        )


def _check_labels(spec: ModelSpec, values: NDArray[np.float32]) -> None:
    """Under ``labels``, refuse what is no whole number; a run names those that are no class's."""
    wrong = values[values != np.rint(values)]  # NaN, too
    if wrong.size:
        logits = "softmax" if spec.contract.task == "multiclass" else "sigmoid"
        named = "none" if spec.ending.is_probability else logits
        raise ContractError(
            f'{spec.path}: activation = "labels" says that its output is labels, and it gives {wrong[0]:.3g} on noise; '
            f'{spec.ending}: set activation = "{named}" in the contract'
        )


def by_class(raw: NDArray[Any], spec: ModelSpec) -> NDArray[np.float32]:
    """A model's raw output as float32 with the class axis second, ``(batch, classes, *sizes)``."""
    layout = spec.contract.scores_layout
    raw = raw.transpose(layout.to_first) if layout.has_class_axis(raw.shape) else raw[:, None]
    return np.asarray(raw, np.float32)
