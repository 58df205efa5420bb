"""The model on a device: pixels are sent as stored, and neither they nor the scores come back."""

import gc
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto
from torch import Tensor

from segpipe.errors import DeviceMemoryError, ModelError, memory_errors
from segpipe.geometry.windows import Tiling
from segpipe.network.arrays import LAG_BATCHES
from segpipe.network.averaging import mean_scores
from segpipe.network.conversion import model_for
from segpipe.network.device import (
    SessionTerms,
    engine_errors,
    engine_folder,
    failed_batch,
    gpu_facts,
    open_on_device,
    recorded_options,
)
from segpipe.network.device_arrays import DeviceArrays, DeviceStreams, Upload, scaled, torch_type
from segpipe.network.feeds import Feed
from segpipe.network.model_file import read_model
from segpipe.network.output_graph import output_graph_for
from segpipe.network.read import check_unchanged
from segpipe.network.spec import ModelSpec
from segpipe.pipeline.tiles import Patch

LOG = logging.getLogger("segpipe")


Given = Mapping[str, Tensor]
"""What a graph gets: a tensor on the device for the name of each input."""


def load_on_device(spec: ModelSpec) -> "DeviceModel":
    """Load the model with the planned batch, or a smaller one if memory has become too small for that."""
    while True:
        try:
            return DeviceModel(spec)
        except DeviceMemoryError as error:
            if spec.batch == 1 or spec.batch_is_fixed:
                raise
            spec = replace(spec, batch=spec.batch // 2)
            LOG.warning("%s; begun with batches of %d", str(error), spec.batch)  # not the error, which keeps memory
        gc.collect()  # the error holds the failed session
        streams_of(spec).free()


class DeviceModel:
    """Networks on a device, one after the other, and the mean of their scores; for one thread.

    Every batch has one shape. Nothing waits for the device, which works through its stream while the host reads and writes.
    """

    networks: "list[DeviceNetwork]"
    """Empty while memory is too small for them."""

    def __init__(self, spec: ModelSpec) -> None:
        self.streams = streams_of(spec)
        self._pixels, self._masks = Upload(self.streams), Upload(self.streams)
        self._open(spec)

    def _open(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.arrays = DeviceArrays(self.streams, LAG_BATCHES * spec.batch)
        networks = []
        with self.arrays.here():
            for member in spec.members:
                networks.append(DeviceNetwork(member, self.streams))
        self.networks = networks

    def score(self, patches: Sequence[Patch]) -> tuple[Tensor, list[Tensor | None]]:
        """Scores ``(patches, classes, *tile)``, and the invalid masks of the patches, both on the device."""
        if not self.networks:  # another process may have freed memory
            if refused := self._refused(self.spec):
                raise DeviceMemoryError(refused)
            LOG.warning("there is memory for the model again, and it goes on with batches of %d", self.spec.batch)
        sent = [(own, self._invalid(own)) for own in _alike(patches)]
        parts = [self._scaled(own, invalid) for own, invalid in sent]
        missing = self.spec.batch - len(patches)
        if missing:
            parts.append(self.arrays.zeros((missing, *self.spec.batch_shape[1:])))
        image = parts[0] if len(parts) == 1 else torch.cat(parts)
        out = mean_scores(self.networks, image, self.spec.flips, torch)
        return out[: len(patches)], [mask for own, invalid in sent for mask in _masks(own, invalid, self.spec.tiling)]

    def _scaled(self, patches: Sequence[Patch], invalid: Tensor | None) -> Tensor:
        scaling, shape = patches[0].scaling, self.spec.batch_shape[1:]
        with self._pixels.send([patch.pixels.reshape(shape) for patch in patches]) as sent:
            return sent.to(torch.float32, copy=True) if scaling is None else scaled(sent, scaling, invalid, self.arrays)

    def _invalid(self, patches: Sequence[Patch]) -> Tensor | None:
        """Masks of what the network sees of patches, on the device; None if all pixels are valid."""
        if all(patch.invalid is None for patch in patches):
            return None
        shape = self.spec.tiling.input
        clear = np.zeros(shape, np.bool_)
        masks = [clear if patch.invalid is None else patch.invalid.reshape(shape) for patch in patches]
        with self._masks.send(masks) as sent:
            return sent.clone()

    def shrink(self) -> bool:
        """Halve the batch until memory suffices; False if it cannot become smaller."""
        while self.spec.batch > 1 and not self.spec.batch_is_fixed:
            self.networks = []
            self._give_back()
            if self._refused(replace(self.spec, batch=self.spec.batch // 2)) is None:
                return True
        self._give_back()
        return False

    def _refused(self, spec: ModelSpec) -> str | None:
        """Reopen the network; return the error message if memory is too small, and free what was allocated.

        Raises:
            ModelError: the file has changed.
        """
        refused = None
        try:
            self._open(spec)
        except DeviceMemoryError as error:
            refused = str(error)
        finally:
            check_unchanged(spec)
        if refused:
            self._give_back()
        return refused

    def _give_back(self) -> None:
        """Free unused memory: errors keep sessions, batches and strips alive until they are collected."""
        gc.collect()
        self.streams.free()


class DeviceNetwork:
    """An ONNX Runtime session with input and output in device memory, and its output graph."""

    def __init__(self, spec: ModelSpec, streams: DeviceStreams) -> None:
        self.spec, self._streams = spec, streams
        self._constants = {
            feed.name: torch.from_numpy(feed.constant(spec.batch)).to(streams.device)
            for feed in spec.feeds
            if feed.value is not None
        }
        terms = self._terms()
        self._session = _DeviceSession(open_on_device(model_for(spec), terms), spec, spec.output, streams)
        image = torch.zeros(spec.batch_shape, dtype=torch.float32, device=streams.device)
        self._shape, self._type = self._session.gives(self.given(image))
        graph = output_graph_for(spec, self._shape)
        # plain arithmetic, for which building a TensorRT engine would take too long
        plain = replace(terms, sizes={}, device="cuda" if terms.device == "tensorrt" else terms.device)
        self._output_graph = None if graph is None else _DeviceSession(open_on_device(graph, plain), spec, "out", streams)

    def _terms(self) -> SessionTerms:
        spec, graph = self.spec, read_model(self.spec.path)
        half = any(tensor.data_type == TensorProto.FLOAT16 for tensor in graph.graph.initializer)
        sizes = free_sizes(graph, spec)
        engines = engine_folder(_engine_key(spec)) if spec.device == "tensorrt" else None
        limit = None if spec.memory is None else spec.memory.limit
        return SessionTerms(
            device=spec.device,
            options=spec.options,
            sizes=sizes,
            stream=self._streams.handle,
            limit=limit,
            half=half,
            engines=engines,
            folder=spec.folder,
        )

    def given(self, image: Tensor) -> Given:
        """The network's inputs for scaled tiles ``(batch, channels, *tile)``."""
        return {feed.name: self._given(feed, image) for feed in self.spec.feeds}

    def _given(self, feed: Feed, image: Tensor) -> Tensor:
        if feed.value is not None:
            return self._constants[feed.name]
        picked: Tensor = feed.picked(image)
        return picked.permute(feed.order).to(torch_type(np.dtype(feed.dtype))).contiguous()

    def run(self, given: Given) -> Tensor:
        """The network's raw output for its inputs."""
        out = torch.empty(self._shape, dtype=self._type, device=self._streams.device)
        with self._streams.timed("gpu"):
            self._session(given, out)
        return out

    def __call__(self, image: Tensor) -> Tensor:
        """Scores ``(batch, classes, *tile)`` of scaled tiles ``(batch, channels, *tile)``."""
        scores = self.run(self.given(image)).to(torch.float32)
        if self._output_graph is None:
            return scores
        full = (self.spec.batch, self.spec.contract.scores, *self.spec.tiling.tile)
        out = torch.empty(full, dtype=torch.float32, device=self._streams.device)
        self._output_graph({"scores": scores}, out)
        return out


def streams_of(spec: ModelSpec) -> DeviceStreams:
    """The device of a model, with its streams."""
    return DeviceStreams("cpu" if spec.device == "cpu-tensors" else "cuda")


def _alike(patches: Sequence[Patch]) -> Iterator[list[Patch]]:
    """Group consecutive patches of one type and scaling, which are sent together."""
    for _, own in groupby(patches, key=lambda patch: (patch.pixels.dtype, id(patch.scaling))):
        yield list(own)


def _masks(patches: Sequence[Patch], masks: Tensor | None, tiling: Tiling) -> list[Tensor | None]:
    """The mask of each patch without its margin, with as many axes as it had; None if all its pixels are valid."""
    if masks is None:
        return [None] * len(patches)
    found = zip(patches, masks, strict=True)
    inner = (..., *tiling.middle)
    return [None if patch.invalid is None else mask.reshape(patch.invalid.shape)[inner] for patch, mask in found]


class _DeviceSession:
    """A session with its inputs and one output, all tensors on the device."""

    def __init__(self, session: onnxruntime.InferenceSession, spec: ModelSpec, out: str, streams: DeviceStreams) -> None:
        self._session, self._spec, self._out, self._streams = session, spec, out, streams
        self._options = onnxruntime.RunOptions()
        # the next stage follows in the stream and need not wait
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def __call__(self, given: Given, out: Tensor) -> None:
        binding = self._binding(given)
        binding.bind_output(self._out, *self._place, _numpy_type(out), tuple(out.shape), out.data_ptr())
        self._run(binding, given)

    def gives(self, given: Given) -> tuple[tuple[int, ...], torch.dtype]:
        """Shape and type of the output, found by running it."""
        binding = self._binding(given)
        binding.bind_output(self._out, *self._place)
        self._run(binding, given)
        self._streams.wait()
        (value,) = binding.get_outputs()
        return tuple(value.shape()), _TYPES[value.data_type()]

    @property
    def _place(self) -> tuple[str, int]:
        return self._streams.device.type, 0

    def _binding(self, given: Given) -> Any:
        binding = self._session.io_binding()
        for name, tensor in given.items():
            binding.bind_input(name, *self._place, _numpy_type(tensor), tuple(tensor.shape), tensor.data_ptr())
        return binding

    def _run(self, binding: Any, given: Given) -> None:
        with engine_errors(ModelError, lambda: failed_batch(self._spec.path, given.values())), memory_errors():
            self._session.run_with_iobinding(binding, self._options)


_TYPES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(double)": torch.float64,
    "tensor(bool)": torch.bool,
    "tensor(uint8)": torch.uint8,
    "tensor(int8)": torch.int8,
    "tensor(uint16)": torch.uint16,
    "tensor(int16)": torch.int16,
    "tensor(int32)": torch.int32,
    "tensor(int64)": torch.int64,
}
"""Types of scores by ONNX Runtime's names."""


def _numpy_type(tensor: Tensor) -> Any:
    return np.dtype(str(tensor.dtype).removeprefix("torch.")).type


def free_sizes(graph: onnx.ModelProto, spec: ModelSpec) -> dict[str, int]:
    """Sizes for the named free axes of the inputs."""
    shapes = {feed.name: feed.shape(spec.batch_shape) for feed in spec.feeds}
    given = [(value.type.tensor_type.shape.dim, shapes[value.name]) for value in graph.graph.input if value.name in shapes]
    axes = (pair for dims, shape in given for pair in zip(dims, shape, strict=True))
    return {axis.dim_param: size for axis, size in axes if axis.dim_param}


def _engine_key(spec: ModelSpec) -> str:
    """Hash of everything that a TensorRT engine depends on."""
    facts = [spec.sha256, recorded_options(spec.options), list(spec.batch_shape), str(onnxruntime.__version__), gpu_facts()]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, allow_nan=False).encode()).hexdigest()[:24]
