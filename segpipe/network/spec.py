"""Read a model file and its contract, and check them against each other before any case is opened."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from segpipe.contract import (
    DEFAULT_ALIGN,
    METADATA_KEY,
    Contract,
    contract_of_metadata,
    read_contract,
)
from segpipe.errors import ContractError, ModelError, SettingsError, SourceError, one_line
from segpipe.geometry.layout import Layout
from segpipe.geometry.windows import Tiling
from segpipe.network.averaging import AS_IT_IS, Axes, flips_over
from segpipe.network.device import ON_HOST, DeviceMemory, Kind, Options, check_runtime, resolve_device
from segpipe.network.ending import Ending, ending_of
from segpipe.network.ensemble import ensemble
from segpipe.network.feeds import Feed, as_image, feeds_of
from segpipe.network.form import check_graph, is_quantised, score_count
from segpipe.network.newer import Older, older_form
from segpipe.network.openvino_session import Engine, Precision, place_of, resolve_engine
from segpipe.network.scores_needed import check_scores_needed, resolve_blend
from segpipe.network.shapes import margin_by_size, output_sizes
from segpipe.network.signature import TensorSpec, signature
from segpipe.network.stride_seen import likely_align, stride_seen
from segpipe.network.template import IMAGE_TILE, VOLUME_TILE, input_lines, lines_to_write
from segpipe.settings import BlendOn, Like, Settings
from segpipe.storage.content import describe

Blended = BlendOn | Literal["labels"]
"""What is blended: scores, or labels where the network gives no scores."""


@dataclass(frozen=True)
class ModelSpec:
    """A model file checked against its contract and the settings; picklable: all that a worker needs to load the model."""

    path: Path
    files: tuple[Path, ...]
    """The model file, and files beside it with its weights."""
    sha256: str
    """Hash of the files and the contract in force; for several models, of their hashes."""
    contract: Contract
    contract_origin: str
    tiling: Tiling
    """Tiling of a case with the network's spatial axes; ``tiling_of`` gives the tiling of any case."""
    blend_on: Blended
    batch: int
    device: Kind
    device_reason: str
    input: str
    """The input of pixels; the first of several."""
    output: str
    input_dtype: str
    ending: Ending
    """The end of its graph, at that output."""
    feeds: tuple[Feed, ...] = ()
    """What each input of the graph gets of a batch."""
    older: Older | None = None
    """What the graph is converted to, which is newer than ONNX Runtime takes; None: nothing."""
    batch_is_fixed: bool = False
    threads: int = 1
    """Threads within one call on a CPU."""
    options: Options = field(default_factory=Options)
    """Numerical options of a GPU."""
    weights_mb: float = 0.0
    """Host memory of the loaded network before its trial."""
    network_mb: float = 0.0
    """Host memory that one batch took in the trial, besides the weights."""
    trial_shapes: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    """Shapes of the trial's batch on a CPU and of the raw output for it; None before a trial."""
    output_mb: float = 0.0
    """Host memory of the scores of one batch, which is part of ``network_mb``."""
    memory: DeviceMemory | None = None
    """Memory limits on the device; None on the CPU."""
    engine: Engine | None = None
    """OpenVINO and what it computes in; None for ONNX Runtime."""
    min_agreement: float = 0.99
    """Least share of labels equal to those of ONNX Runtime on the CPU."""
    agreement: float | None = None
    """Share of labels equal to those of ONNX Runtime on trial tiles; None for ONNX Runtime on the CPU."""
    flips: tuple[Axes, ...] = AS_IT_IS
    """Flips of a tile whose scores are averaged, as sets of the network's spatial axes; the first is the identity."""
    like: Like | None = None
    """The program whose choices a run takes for comparison; None: segpipe's own."""
    folds: tuple["ModelSpec", ...] = ()
    """The models whose scores are averaged, this one first; empty for a single model."""
    listed: tuple["Listed", ...] = ()
    """The models of a list, whose label maps are joined in this order; empty for a model that is run itself."""

    @property
    def members(self) -> tuple["ModelSpec", ...]:
        """Each model on its own without flips, with the batch and threads of the ensemble; of a list, each of its models."""
        if self.listed:
            return tuple(member for one in self.listed for member in one.spec.members)
        if not self.folds:
            return (replace(self, flips=AS_IT_IS),)
        ours: dict[str, Any] = {
            key: getattr(self, key) for key in ("batch", "threads", "tiling", "blend_on", "device", "options", "memory")
        }
        return tuple(replace(fold, **ours) for fold in self.folds)

    def given(self, batch: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """What each input of the graph gets of a batch ``(batch, channels, *tile)``."""
        return {feed.name: feed.given(batch) for feed in self.feeds}

    @property
    def folder(self) -> Path | None:
        """Folder of the external data of a converted graph; None if the file is opened itself."""
        return None if self.older is None else self.path.parent

    @property
    def on_host(self) -> bool:
        """Whether scores come back as NumPy arrays, from calls that run side by side."""
        return self.device in ON_HOST

    @property
    def title(self) -> str:
        """Path or paths of the model, for a message."""
        return ", ".join(str(model.path) for model in self.folds or (self,))

    @property
    def passes(self) -> int:
        """Number of times that a tile is scored; joining the labels of a list scores none."""
        if self.listed:
            return 1
        return len(self.flips) * len(self.folds or (self,))

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Shape of a batch in the pipeline: ``(batch, channels, *Tiling.input)``."""
        return (self.batch, self.contract.input_channels, *self.tiling.input)

    @property
    def output_shape(self) -> tuple[int, ...] | None:
        """Shape of the raw output for a batch, as the trial has shown; None if no batch of this shape was tried."""
        if self.trial_shapes is None or self.trial_shapes[0] != self.batch_shape:
            return None
        return self.trial_shapes[1]

    def tiling_of(self, shape: Sequence[int]) -> Tiling:
        """Tiling of a case of this shape; a 2-D network gets the slices of a volume along its first axis.

        Raises:
            SourceError: the number of axes does not fit the network.
        """
        layout = self.contract.layout
        if self.contract.neighbours and len(shape) == 2:
            raise SourceError(
                f"a model that takes neighbouring slices (neighbours = {self.contract.neighbours}) needs volumes, got an "
                f"image of {by(shape)}: give all slices as one file, such as .nii.gz"
            )
        if len(shape) == layout.ndim:
            return self.tiling
        if not layout.is_volume and len(shape) == 3:
            return self.tiling.sliced()
        if layout.is_volume and len(shape) == 2:
            raise SourceError(
                f"a model of volumes needs volumes, got an image of {by(shape)} and the model {self.path} of layout "
                f'"{layout}": take a model of images, or give all slices as one file, such as .nii.gz'
            )
        raise SourceError(f"a case must have 2 spatial axes, or 3 for a volume, got {by(shape)}: give one image or volume")


@dataclass(frozen=True)
class Listed:
    """A model of a list, and what its labels become in the joined map."""

    name: str
    spec: ModelSpec
    ids: tuple[tuple[int, int], ...]
    """Each label of its masks, or each band if its classes are independent, with the id in the joined map; 0: no claim."""


def read_spec(settings: Settings) -> ModelSpec:
    """Read the model files and their contracts, and check them against each other and the settings.

    Raises:
        ModelError, ContractError, DeviceError, SettingsError: something does not fit; the message says what to mend.
    """
    check_runtime()
    device, device_reason = resolve_device(settings.device)
    models = [_read(settings, path, device, device_reason) for path in settings.model]
    spec = replace(ensemble(models), flips=_resolve_flips(settings, models[0].contract))
    return _as_nnunet(spec, settings) if settings.like == "nnunet" else spec


def _as_nnunet(spec: ModelSpec, settings: Settings) -> ModelSpec:
    """The same model, with the windows and weights of nnU-Net's predictor.

    Raises:
        SettingsError: the model is not nnU-Net's, or a setting contradicts it.
    """
    told = spec.contract.provenance.get("nnunet")
    named = ("resampling_fn_data", "resampling_fn_probabilities")
    if not isinstance(told, dict) or any(told.get(key) != NNUNET_RESAMPLING for key in named):
        raise SettingsError(
            f"like nnunet needs a model that segpipe export nnunet made of plans with nnU-Net's default resampling, got "
            f"{spec.title}: leave --like out"
        )
    if set_too := [f"--{key.replace('_', '-')}" for key in ("tile", "overlap", "blend_on") if getattr(settings, key)]:
        raise SettingsError(f"like nnunet takes nnU-Net's own windows, got {', '.join(set_too)} as well: leave one out")
    if spec.device != "cpu":
        raise SettingsError(f"like nnunet is a comparison on the CPU, got device {spec.device}: add --device cpu")
    tile = spec.tiling.tile
    tiling = Tiling(tile, tuple(size // 2 for size in tile), (1,) * len(tile), "nnunet")
    return replace(spec, tiling=tiling, like="nnunet")


NNUNET_RESAMPLING = "resample_data_or_seg_to_shape"
"""nnU-Net's function for images and scores, unless the planner is another."""


def _read(settings: Settings, path: Path, device: Kind, device_reason: str) -> ModelSpec:
    """Read one model."""
    proto = read_model(path)
    inputs, outputs = signature(proto)
    contract, origin = find_contract(settings, path, proto)
    image = image_of(inputs, contract, path)
    scores = _choose(outputs, contract.output, "output", path)
    check_graph(proto, path, image, scores, contract)
    check_scores_needed(settings, contract, path)
    _check_channels(image, contract, path)
    _check_scaling(image, contract, path)
    feeds = feeds_of(contract, image, inputs, path)
    files = (path, *external_data(path, proto))
    _check_lengths(path, proto)
    return ModelSpec(
        path=path,
        files=files,
        sha256=_digest(files, contract),
        contract=contract,
        contract_origin=origin,
        tiling=resolve_tiling(settings, contract, image, proto, path),
        blend_on=resolve_blend_on(settings, contract),
        batch=_resolve_batch(settings, image, device),
        device=device,
        device_reason=device_reason,
        input=image.name,
        output=scores.name,
        input_dtype=str(image.dtype),
        ending=ending_of(proto, scores.name),
        feeds=feeds,
        older=older_form(proto, path),
        batch_is_fixed=image.shape[0] is not None,
        options=resolve_options(settings, device),
        engine=_resolve_engine(settings, device, proto, path),
        min_agreement=settings.min_agreement,
        threads=settings.threads or 1,
    )


def read_model(path: Path) -> onnx.ModelProto:
    """Read the graph of an ONNX file, without its external data."""
    if path.is_dir():
        kind = describe(path)
        raise ModelError(f"the model must be an ONNX file, got the folder {path}" + (f": {kind}" if kind else ""))
    if not path.is_file():
        raise ModelError(f"the model must exist, got {path}")
    if path.suffix.lower() == ".toml":
        raise ModelError(f"the model must be an ONNX file here, got {path}: a list of models is for segpipe run")
    try:
        proto = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # noqa: BLE001 - protobuf raises classes that depend on its implementation
        raise ModelError(f"{path} is not an ONNX file: {describe(path) or f'{one_line(error)}: copy it again'}") from None
    if not proto.graph.node:
        raise ModelError(f"{path} is not an ONNX file: {describe(path) or 'it holds no graph'}")
    return proto


def image_of(inputs: list[TensorSpec], contract: Contract, path: Path) -> TensorSpec:
    """The input of pixels, the first of several; its shape is ``(N, C, *tile)`` in the contract's layout.

    Raises:
        ContractError: the graph has several inputs, and the contract does not say what each gets.
    """
    if contract.inputs is None and len(inputs) > 1:
        raise ContractError(
            f"{path} takes {len(inputs)} inputs, and the contract must say what each gets, such as\n"
            + "\n".join(input_lines(inputs, contract.layout))
        )
    if contract.inputs is None:
        return _choose(inputs, contract.input, "input", path)
    taken = [tensor for tensor in inputs if (given := contract.inputs.get(tensor.name)) and given.value is None]
    if not taken:
        raise ContractError(f"{path} has none of the contract's inputs: it has {', '.join(map(str, inputs))}")
    return as_image(taken, contract, path)


def _choose(tensors: list[TensorSpec], name: str | None, what: str, path: Path) -> TensorSpec:
    names = ", ".join(map(str, tensors))
    if name is not None:
        for tensor in tensors:
            if tensor.name == name:
                return tensor
        raise ContractError(f"{path} has no {what} called {name}: it has {names}")
    if len(tensors) != 1:
        raise ContractError(
            f'{path} has {len(tensors)} {what}s, and the contract must say which is meant, with {what} = "...": {names}'
        )
    return tensors[0]


def find_contract(settings: Settings, model: Path, proto: onnx.ModelProto) -> tuple[Contract, str]:
    """Find the contract: ``--contract``, else the sidecar ``model.toml``, else the file's metadata."""
    sidecar = model.with_suffix(".toml")
    for path in (settings.contract, sidecar if sidecar.is_file() else None):
        if path is not None:
            return read_contract(path), str(path)
    metadata = {p.key: p.value for p in proto.metadata_props}
    inputs, outputs = signature(proto)
    channels = inputs[0].shape[1] if inputs and len(inputs[0].shape) == 4 else None
    contract = contract_of_metadata(metadata, channels, score_count(outputs[0], Layout.NCHW) if outputs else None)
    if contract is None:
        raise ContractError(lines_to_write(model, proto))
    if METADATA_KEY not in metadata and contract.task == "multiclass" and ending_of(proto, outputs[0].name).is_open:
        # Deepness takes the largest score, of logits or of probabilities, and its metadata does not say which
        contract = contract.model_copy(update={"activation": "softmax"})
    if METADATA_KEY not in metadata:
        contract = _as_deepness_crops(contract, proto, inputs[0], outputs[0])
    return contract, f"metadata of {model.name}"


def _as_deepness_crops(contract: Contract, proto: onnx.ModelProto, image: TensorSpec, scores: TensorSpec) -> Contract:
    """The contract with the margin of a smaller output, which Deepness takes as the middle; its overlap is that of tiles."""
    fixed = contract.layout.spatial(image.shape) if len(image.shape) == 4 else ()
    tile = contract.axes("tile", 2) or tuple(n for n in fixed if n is not None)
    if contract.layout is not Layout.NCHW or len(tile) != 2:
        return contract
    sizes = output_sizes(proto, {image.name: (1, contract.channel_count, *tile)}, scores.name, contract.layout)
    margin = None if sizes is None else margin_by_size(tile, sizes)
    if margin is None or not any(margin):
        return contract
    shared = contract.axes("overlap", 2) or (0, 0)
    overlap = [max(0, n - 2 * m) for n, m in zip(shared, margin, strict=True)]
    return contract.model_copy(update={"margin": list(margin), "overlap": overlap})


def _check_channels(image: TensorSpec, contract: Contract, path: Path) -> None:
    rank = contract.ndim + 2
    if image.dtype is None or image.dtype.kind == "b":
        raise ModelError(f'{path}: input "{image.name}" must hold floats or integers')
    if len(image.shape) != rank:
        raise ContractError(
            f'{path}: input "{image.name}" must have {rank} axes for layout "{contract.layout}", got {image}'
        )
    channels = contract.layout.channels(image.shape)
    if channels is not None and channels != contract.input_channels:
        slices = f" in each of {2 * contract.neighbours + 1} slices (neighbours)" if contract.neighbours else ""
        raise ContractError(
            f"the contract's channels must be the model's, got {contract.channel_count}{slices} in the contract "
            f"({', '.join(contract.channel_names or ['unnamed'])}) and {channels} in {path}"
        )


def _check_scaling(image: TensorSpec, contract: Contract, path: Path) -> None:
    assert image.dtype is not None
    if image.dtype.kind in "iu" and contract.scaling == "host" and not _identity(contract):
        raise ContractError(
            f"{path} takes {image.dtype} pixels, so the contract cannot scale them before: "
            'set scaling = "graph" where the model scales them itself'
        )


def _identity(contract: Contract) -> bool:
    clipped = contract.limits is not None or contract.clip_percentiles is not None
    plain = set(contract.normalizations) == {"none"} and not clipped and contract.pixel == "stored"
    return plain and set(contract.column("scale")) == {1.0} and set(contract.column("offset")) == {0.0}


def by(sizes: Sequence[int]) -> str:
    """Format sizes for a message.

    >>> by((512, 256))
    '512 x 256'
    """
    return " x ".join(map(str, sizes))


def resolve_tiling(settings: Settings, contract: Contract, image: TensorSpec, proto: onnx.ModelProto, path: Path) -> Tiling:
    """Tile, overlap and align per axis from flags, the contract, and the model's fixed sizes, in that order."""
    ndim = contract.ndim
    fixed = contract.layout.spatial(image.shape)
    asked = _spread(settings.tile, ndim, "tile") or contract.axes("tile", ndim)
    if asked is None and None in fixed:
        raise ContractError(
            f"{path} takes tiles of any size, so the contract must name one: add tile = "
            f"{[VOLUME_TILE if contract.layout.is_volume else IMAGE_TILE] * ndim}, or give --tile"
        )
    tile = asked or tuple(n for n in fixed if n is not None)
    if any(f is not None and f != t for f, t in zip(fixed, tile, strict=True)):
        raise ContractError(
            f"the tile must be the model's, got {by(tile)} and {path} takes {by([f or 0 for f in fixed])}: "
            f"give --tile {','.join(str(f or t) for f, t in zip(fixed, tile, strict=True))}"
        )
    whole, margin = None not in fixed, contract.axes("margin", ndim) or (0,) * ndim
    scored = tuple(t - 2 * m for t, m in zip(tile, margin, strict=True))
    if min(scored) < 1:
        raise ContractError(
            f"the tile must be larger than twice the margin, got tile {by(tile)} and margin {by(margin)}: take a larger "
            "--tile, or correct margin in the contract"
        )
    align = contract.axes("align", ndim) or (_align(proto, tile, margin) if whole else DEFAULT_ALIGN,) * ndim
    if any(margin):
        _check_phase(tile, contract, align, path)
    # neighbours then see a quarter of each other's pixels
    default = tuple(max(0, t // 4 - 2 * m) for t, m in zip(tile, margin, strict=True))
    overlap = _spread(settings.overlap, ndim, "overlap") or contract.axes("overlap", ndim) or default
    return Tiling(scored, overlap, align, resolve_blend(settings, contract), whole, margin)


def _check_phase(tile: tuple[int, ...], contract: Contract, align: tuple[int, ...], path: Path) -> None:
    """Check that a tile of valid convolutions is one that they divide as they divide the contract's.

    Raises:
        SettingsError: another tile was asked for; the message has the nearest that fits.
    """
    own = contract.axes("tile", contract.ndim)
    if own is None or all((t - o) % a == 0 for t, o, a in zip(tile, own, align, strict=True)):
        return
    near = [o + round((t - o) / a) * a for t, o, a in zip(tile, own, align, strict=True)]
    raise SettingsError(
        f"with a margin, the tile must differ from the contract's by multiples of align, got tile {by(tile)} for {path} "
        f"with tile {by(own)} and align {by(align)}: take --tile {','.join(map(str, near))}"
    )


def _align(proto: onnx.ModelProto, tile: tuple[int, ...], margin: tuple[int, ...]) -> int:
    """Where windows of a fixed tile start, if the contract does not say so: at multiples of 32, if that divides the tile.

    With a margin, the tile need not be a multiple: the stride of the layers is taken, where they show it.
    """
    if any(margin):
        return stride_seen(proto) or DEFAULT_ALIGN
    return DEFAULT_ALIGN if not any(n % DEFAULT_ALIGN for n in tile) else likely_align(stride_seen(proto), tile, fixed=True)


def _spread(value: tuple[int, ...] | None, ndim: int, key: str) -> tuple[int, ...] | None:
    if value is None or len(value) == ndim:
        return value
    if len(value) == 1:
        return value * ndim
    raise SettingsError(f"{key} must have one number or {ndim}, one per axis, got {','.join(map(str, value))}")


def resolve_blend_on(settings: Settings, contract: Contract) -> Blended:
    """Blend logits unless asked otherwise; a model that gives probabilities has no logits to blend, or labels no scores."""
    if contract.activation == "labels":
        return "labels"
    if contract.activation != "none":
        return settings.blend_on or "logits"
    if settings.blend_on == "logits":
        raise SettingsError(
            'blend_on logits needs a model that gives logits, and the contract says activation = "none": '
            "its outputs are probabilities already, so leave --blend-on out"
        )
    return "probabilities"


def _resolve_flips(settings: Settings, contract: Contract) -> tuple[Axes, ...]:
    if settings.tta == "none":
        return AS_IT_IS
    if not contract.flip_axes:
        raise SettingsError("tta flips needs axes to flip, and the contract says flips = []: leave --tta out")
    return flips_over(contract.flip_axes)


def _resolve_batch(settings: Settings, image: TensorSpec, device: Kind) -> int:
    fixed = image.shape[0]
    if fixed is not None and settings.batch not in (None, fixed):
        raise SettingsError(f"the model's batch is fixed at {fixed}, got --batch {settings.batch}: leave --batch out")
    return fixed or settings.batch or (1 if device in ON_HOST else 8)


def resolve_options(settings: Settings, device: Kind) -> Options:
    """Numerical options of a GPU; the CPU has none."""
    if device in ON_HOST:
        asked = [f"--{name}" for name in ("tf32", "nhwc") if getattr(settings, name)]
        if asked:
            raise SettingsError(
                f"{' and '.join(asked)} is for an NVIDIA GPU, got device {device}: leave it out, or take --device cuda"
            )
        return Options()
    return Options(settings.tf32, settings.nhwc)


def _resolve_engine(settings: Settings, device: Kind, proto: onnx.ModelProto, path: Path) -> Engine | None:
    """OpenVINO in the requested precision, if it is the device; ``auto`` is fp32, or int8 for a quantised file.

    Raises:
        SettingsError: file or device do not fit the precision.
        DeviceError: OpenVINO or its device is missing.
    """
    quantised, asked = is_quantised(proto), settings.precision
    own: Precision = "int8" if quantised else "fp32"
    if asked == "bf16" and device != "openvino":
        raise SettingsError(f"precision bf16 needs OpenVINO, got device {device}: add --device openvino")
    if asked != "auto" and (asked == "int8") != quantised:
        mend = (
            f"leave --precision out, or take the file in {asked}"
            if quantised
            else "segpipe export --precision int8 makes one"
        )
        raise SettingsError(
            f"precision {asked} needs a file in {'int8' if asked == 'int8' else 'floats'}, got {path} in {own}: {mend}"
        )
    if device != "openvino":
        return None
    return resolve_engine(place_of(settings.device), own if asked == "auto" else asked)


def check_unchanged(spec: ModelSpec) -> None:
    """Check that a model has not changed since the run was planned, perhaps hours before a worker loads it."""
    for model in spec.members:
        if _digest(model.files, model.contract) != model.sha256:
            beside = "".join(f" or {file}" for file in model.files[1:])
            raise ModelError(
                f"{model.path}{beside} has changed since this run began: run the same command again, for the new model"
            )


def _digest(files: Sequence[Path], contract: Contract) -> str:
    """SHA-256 of everything that the scores depend on: the file, its external data, the contract in force."""
    digest = hashlib.sha256()
    for file in files:
        if file.exists() and not file.is_file():
            raise ModelError(f"{files[0]}: a model and its external data must be regular files, and {file} is not")
        try:
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        except OSError as error:
            if file == files[0]:
                raise ModelError(f"{file} cannot be read: {error.strerror}") from None
            raise ModelError(
                f"{files[0]} needs its external data {file}: {error.strerror}: copy both files, one beside the other"
            ) from None
    digest.update(contract.model_dump_json().encode())
    return digest.hexdigest()


def external_data(path: Path, proto: onnx.ModelProto) -> list[Path]:
    """Paths of the files beside the model that hold its weights, wherever in the graph they are named."""
    names = {
        entry.value
        for tensor in _tensors(proto)
        if tensor.data_location == TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    folder = path.parent.resolve()
    for name in names:
        if not (folder / name).resolve().is_relative_to(folder):
            raise ModelError(f"{path}: external data of a model must lie in its folder, got {name}: move it there")
    return [path.parent / name for name in sorted(names)]


def _check_lengths(path: Path, proto: onnx.ModelProto) -> None:
    """Check that files of external data hold all bytes that the graph says; a missing file has its own message."""
    for tensor in _tensors(proto):
        if tensor.data_location == TensorProto.EXTERNAL:
            said = {entry.key: entry.value for entry in tensor.external_data}
            file = path.parent / said.get("location", "")
            try:
                end = int(said.get("offset") or 0) + int(said.get("length") or 0)
            except ValueError:
                raise ModelError(
                    f"{path}: the place of its tensor {tensor.name!r} cannot be read: export it again"
                ) from None
            if file.is_file() and (size := file.stat().st_size) < end:
                raise ModelError(
                    f"{path} needs its external data {file} of at least {end:,} bytes, got {size:,}: "
                    "it is cut off or another model's, so copy both files again"
                )


def _tensors(message: Any) -> Iterator[TensorProto]:
    """Yield all tensors below a message, also in branches, bodies, functions, attributes and sparse initializers."""
    if isinstance(message, TensorProto):
        yield message
        return
    for kind, value in message.ListFields():
        if kind.type == kind.TYPE_MESSAGE:
            yield from chain.from_iterable(map(_tensors, value if isinstance(value, Sequence) else [value]))
