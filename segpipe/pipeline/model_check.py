"""The trial before a run: run a batch of noise through the model, check its output, and measure its memory."""

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.errors import ModelError
from segpipe.messages.printable import counted, dims
from segpipe.network.activation import by_class
from segpipe.network.batch_independence import batch_tiles, depends_on_batch, one_by_one
from segpipe.network.conversion import check_converted
from segpipe.network.ensemble import tried
from segpipe.network.form import unsteady
from segpipe.network.outputs import check_output
from segpipe.network.session import close_kept
from segpipe.network.spec import ModelSpec
from segpipe.pipeline.infer import HostNetwork
from segpipe.pipeline.memory import refuse_large_tile
from segpipe.process.machine import forget_most_resident, memory, most_resident, processors, resident
from segpipe.process.native import NativeCall, OnOpen, TooLongError

LOG = logging.getLogger("segpipe")

TRIAL_SECONDS = 600.0
"""Time limit of a trial on the CPU, with loading the model. On a device there is none, since building engines takes long."""

PATIENCE = 30.0
"""Seconds for a trial to end that is given up; after that the process ends without it."""

MOST_THREADS = 8
"""Most threads of a trial: each takes a little memory, which calls of the run, with a thread each, do not take."""

ANNOUNCED = 2**21
"""Pixels of a batch above which a message announces the trial."""


def try_out(spec: ModelSpec, *, keep: bool = False) -> ModelSpec:
    """Run one batch of noise through each network, check its output, and return the spec with the measured memory.

    With ``keep``, networks of another engine than ONNX Runtime stay open for ``compare_engine``.

    Raises:
        ModelError, ContractError, DeviceError: the model does not run, or its scores do not match the contract.
    """
    refuse_large_tile(spec, memory())
    try:
        spec = tried(spec, [_alone(model) for model in spec.members])
    finally:
        if not keep:
            close_kept()
    if spec.on_host or not spec.folds:
        return spec
    from segpipe.pipeline.gpu_check import with_memory

    return with_memory(spec)


def _alone(spec: ModelSpec) -> ModelSpec:
    """Try one network."""
    if spec.batch * math.prod(spec.tiling.input) > ANNOUNCED:
        LOG.warning("trying %s on a tile of %s, which may take a while", spec.path, dims(spec.tiling.input))
    check_converted(spec, batch_tiles)
    try:
        return _in_time(_try_host if spec.on_host else _try_device, spec)
    except MemoryError:
        raise ModelError(f"a tile of {dims(spec.tiling.input)} does not fit into memory: lower --tile or --batch") from None


def _in_time(trial: Callable[[ModelSpec, OnOpen], ModelSpec], spec: ModelSpec) -> ModelSpec:
    """Run a trial in a thread.

    Raises:
        ModelError: the trial exceeds its time limit, for example because of an endless loop in the graph.
    """
    call = NativeCall(partial(trial, spec), name="segpipe-trial")
    try:
        return call.result(TRIAL_SECONDS if spec.on_host else None, patience=PATIENCE)
    except TooLongError:
        raise ModelError(
            f"{spec.path} must score a batch of {counted(spec.batch, 'tile')} of {dims(spec.tiling.input)} within "
            f"{TRIAL_SECONDS:g} s, and does not: lower --tile or --batch; a graph with an endless loop never ends"
        ) from None


def _try_host(spec: ModelSpec, on_open: OnOpen) -> ModelSpec:
    tiles = batch_tiles(spec)
    before = resident()
    model = HostNetwork(_hurried(spec), arena="none", trial=tiles, on_open=on_open)
    assert model.trial is not None
    if spec.may_drop and model.raw(tiles).tobytes() != model.trial.tobytes():
        raise unsteady(spec.path, "dropout in training mode")
    opened = max(before, model.opened)
    # when memory is short, the system evicts pages of libraries meanwhile, and the measured memory is too low
    taken = max(most_resident() - opened, model.trial.nbytes)
    shapes = tiles.shape, model.trial.shape
    spec = replace(spec, weights_mb=(opened - before) / 1e6, network_mb=taken / 1e6, trial_shapes=shapes)
    spec = replace(spec, output_mb=model.trial.nbytes / 1e6)
    check_output(spec, by_class(model.trial, spec), model.raw)
    if spec.engine is not None and not np.isfinite(model.trial).all():
        _blame(spec, model, tiles)
    if spec.engine is not None:
        model.keep_open()
    if spec.batch == 1 or not depends_on_batch(model.raw, tiles, model.trial, alone=not spec.batch_is_fixed):
        return spec
    return one_by_one(spec)


def _hurried(spec: ModelSpec) -> ModelSpec:
    """The model on all processors, which nothing else uses yet; not where scores are compared to the last bit."""
    return replace(spec, threads=min(MOST_THREADS, processors())) if spec.engine is None and spec.batch == 1 else spec


def _blame(spec: ModelSpec, model: HostNetwork, tiles: NDArray[Any]) -> None:
    """Raise that scores are not finite, and whether those of ONNX Runtime are."""
    from segpipe.pipeline.agreement import CpuReference, agreement_of

    agreement_of(spec, model(tiles)[:1], CpuReference(spec).scores(tiles[:1]))


def _try_device(spec: ModelSpec, on_open: OnOpen) -> ModelSpec:
    from segpipe.pipeline.gpu_check import try_device

    del on_open  # the trial has no time limit
    before = resident()
    forget_most_resident()
    spec = try_device(spec)
    return replace(spec, network_mb=max(0, most_resident() - before) / 1e6)
