"""Compare labels of trial tiles on a device with those of ONNX Runtime on the CPU."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.errors import DeviceError, case_errors
from segpipe.formats.case import Case
from segpipe.formats.case_scaling import scaling_of
from segpipe.formats.registry import environment
from segpipe.network.conversion import model_for
from segpipe.network.device import open_session
from segpipe.network.noise import noise_tiles
from segpipe.network.output_graph import output_graph_for
from segpipe.network.scaling import of_input
from segpipe.network.session import close_kept
from segpipe.network.spec import ModelSpec
from segpipe.overrides import AS_STORED, Overrides
from segpipe.pipeline.decision import Decision
from segpipe.pipeline.infer import HostModel, LoadedModel
from segpipe.pipeline.opening import on_network_grid, open_checked
from segpipe.pipeline.tiles import Patch, patch_of
from segpipe.process.machine import processors

CASES = 4
"""Number of cases from which tiles are compared, one of each."""

LOOKED_AT = 16
"""Most cases that are opened for them."""

PLACES = 9
"""Most windows of a case that are read to find one with valid pixels."""


class CpuReference:
    """ONNX Runtime on the CPU, tile by tile where the model allows it."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = replace(spec, device="cpu", engine=None, batch=spec.batch if spec.batch_is_fixed else 1)
        # threads do not change labels
        self._session = open_session(model_for(spec), arena="none", threads=processors(), folder=spec.folder)

    def raw(self, batch: NDArray[Any]) -> NDArray[Any]:
        """The network's raw output for some tiles; the batch is filled up if its size is fixed."""
        spec = self.spec
        batch = np.concatenate([batch, np.repeat(batch[-1:], max(0, spec.batch - len(batch)), axis=0)])
        (raw,) = self._session.run([spec.output], spec.given(batch))
        return np.asarray(raw)

    def scores(self, tiles: NDArray[Any]) -> NDArray[np.float32]:
        """Scores ``(tiles, classes, *tile)``."""
        found = []
        for tile in tiles:
            raw = self.raw(tile[None])
            graph = output_graph_for(self.spec, raw.shape)
            if graph is not None:
                (raw,) = open_session(graph, arena="own").run(None, {"scores": raw.astype(np.float32)})
            found.append(np.asarray(raw[:1], np.float32))
        return np.concatenate(found)


def checked_agreement(spec: ModelSpec, found: NDArray[np.float32], truth: NDArray[np.float32]) -> float:
    """As ``agreement_of``, refused if it is too small."""
    counted = agreement_of(spec, found, truth)
    refuse_below(spec, counted.share, f"trial tiles of {spec.path}")
    return counted.share


def agreement_of(spec: ModelSpec, found: NDArray[np.float32], truth: NDArray[np.float32]) -> "Agreement":
    """Compare labels, of scores ``(tiles, classes, *tile)`` on the device and on the CPU.

    Raises:
        DeviceError: scores are not finite.
    """
    if not np.isfinite(found).all():
        raise DeviceError(
            f"scores must be finite, and {spec.path} gives NaN or infinity on {spec.device}, and none on the CPU: "
            + ("leave --precision out" if spec.engine is not None else "export it with --precision fp32")
            if np.isfinite(truth).all()
            else f"scores must be finite, and {spec.path} gives NaN or infinity for noise, on the CPU, too: check the model"
        )
    return _compare(spec, found, truth)


@dataclass(frozen=True, slots=True)
class Agreement:
    """Labels that were compared, and how many were equal."""

    equal: int
    labels: int

    def __add__(self, other: "Agreement") -> "Agreement":
        return Agreement(self.equal + other.equal, self.labels + other.labels)

    @property
    def share(self) -> float:
        """Share of equal labels; 1 if there are none."""
        return self.equal / self.labels if self.labels else 1.0


def _compare(
    spec: ModelSpec, found: Iterable[NDArray[np.float32]], truth: Iterable[NDArray[np.float32]], invalid: Any = None
) -> Agreement:
    """Count labels of tiles that agree, of scores ``(classes, *tile)`` each, where pixels are valid."""
    decision, total = Decision(spec.contract, spec.blend_on), Agreement(0, 0)
    valid = slice(None) if invalid is None else ~invalid
    for here, there in zip(found, truth, strict=True):
        ones = np.ones(here.shape[1:], np.float32)
        a, b = (decision.labels(scores, ones, None)[0][..., valid] for scores in (here, there))
        total += Agreement(int(np.equal(a, b).sum()), a.size)
    return total


def refuse_below(spec: ModelSpec, share: float, where: str) -> None:
    """Refuse a device on which too many labels differ.

    Raises:
        DeviceError: with both figures.
    """
    if share < spec.min_agreement:
        mend = (
            "leave --precision out"
            if spec.engine is not None and spec.engine.precision == "bf16"
            else "take --device cpu"
            if spec.engine is not None
            else "export it with --precision fp32, leave --tf32 out, or take --device cpu"
        )
        raise DeviceError(
            f"at least {spec.min_agreement:.0%} of the labels on {spec.device} must be the CPU's, got {share:.2%} on "
            f"{where}: {mend}, or lower --min-agreement"
        )


def compare_engine(spec: ModelSpec, cases: Sequence[Case] = (), overrides: Overrides = AS_STORED) -> ModelSpec:
    """Compare labels of another engine on tiles of the first cases; return the spec with the share of equal labels.

    Where no case has a valid tile, labels of noise are compared. Nothing is compared if no label needs to be equal.

    Raises:
        DeviceError: too few labels agree.
    """
    try:
        return spec if spec.engine is None or not spec.min_agreement else _compared(spec, cases, overrides)
    finally:
        close_kept()  # by the trial


def _compared(spec: ModelSpec, cases: Sequence[Case], overrides: Overrides) -> ModelSpec:
    found = list(islice(_tiles(cases[:LOOKED_AT], spec, overrides), CASES))
    device, cpu = HostModel(spec), HostModel(_on_cpu(spec))
    if found:
        counted = sum((_on_tile(spec, device, cpu, patch) for _, patch in found), Agreement(0, 0))
        where = f"tiles of {', '.join(dict.fromkeys(case.name for case, _ in found))}"
    else:
        noise = noise_tiles(spec, spec.batch)
        counted, where = agreement_of(spec, device(noise)[:1], cpu(noise)[:1]), f"noise through {spec.title}"
    refuse_below(spec, counted.share, where)
    return replace(spec, agreement=counted.share)


def _on_cpu(spec: ModelSpec) -> ModelSpec:
    """The model in ONNX Runtime, on all processors: threads do not change labels."""
    folds = tuple(replace(fold, device="cpu", engine=None) for fold in spec.folds)
    return replace(spec, device="cpu", engine=None, threads=processors(), folds=folds)


def _on_tile(spec: ModelSpec, device: LoadedModel, cpu: LoadedModel, patch: Patch) -> Agreement:
    (here, masks), (there, _) = device.score([patch]), cpu.score([patch])
    return _compare(spec, here, there, masks[0])


def _tiles(cases: Sequence[Case], spec: ModelSpec, overrides: Overrides) -> Iterator[tuple[Case, Patch]]:
    """Yield a tile with valid pixels of each case, from its middle outwards; a case that cannot be read has none."""
    with environment():
        for case in cases:
            patch = None
            with case_errors(case.path):  # its job says why
                patch = _tile(case, spec, overrides)
            if patch is not None:
                yield case, patch


def _tile(case: Case, spec: ModelSpec, overrides: Overrides) -> Patch | None:
    """A tile with valid pixels; None if there is none where it is looked for."""
    source, info = open_checked(case, spec, overrides)
    with closing(source):
        scaling = of_input(scaling_of(source, spec.contract, info.box), spec.contract)
        seen = on_network_grid(source, info, spec, scaling)
        patches = (patch_of(seen, info.cover, index, scaling) for index in _outwards(info.cover.counts))
        return next((patch for patch in islice(patches, PLACES) if patch is not None), None)


def _outwards(counts: Sequence[int]) -> list[tuple[int, ...]]:
    """Indexes of windows, evenly chosen, those near the middle first.

    >>> _outwards((3,))
    [(1,), (0,), (2,)]
    """
    shares = (0.5, 0.25, 0.75)
    each = [dict.fromkeys(min(n - 1, int(n * share)) for share in shares) for n in counts]
    return list(product(*each))
