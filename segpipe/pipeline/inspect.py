"""What a model or a raster is, and what it would need: facts that JSON can take, gathered without a run."""

import json
import math
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, inliner, shape_inference
from pyproj import CRS
from pyproj.exceptions import CRSError
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader

from segpipe.pipeline.areas import ground_of
from segpipe.pipeline.batches import METRES, open_sheet
from segpipe.pipeline.cases import SUFFIXES, Case, is_remote
from segpipe.pipeline.config import Settings
from segpipe.pipeline.contract import Contract, parse_contract
from segpipe.pipeline.errors import InputError, ModelError, SegpipeError, SettingsError, SourceError, foreseen
from segpipe.pipeline.gdal import DRIVERS, gdal_errors, gdal_options
from segpipe.pipeline.grid import Grid
from segpipe.pipeline.machine import processors
from segpipe.pipeline.model import try_out
from segpipe.pipeline.plan import Job, Plan, PlannedCase, memory_mb
from segpipe.pipeline.records import Run
from segpipe.pipeline.sources.raster import RasterSource, read_grid
from segpipe.pipeline.spec import ModelSpec, external_data, find_contract, read_model, read_spec, signature
from segpipe.pipeline.windows import Cover, Window, reflected

CHEAP_PIXELS = 2**24
"""Rasters up to this size are looked at window by window: a second or so."""

SAMPLES, FEW_SAMPLES = 1024, 16
"""Longest side of the decimated read. The few are for a large file without overviews, where each sample decodes a block of
its own (measured: 1,024 blocks of 512 px, 4 bands of uint16 noise, 20 s); 256 samples tell a share to 3 %."""

KEPT_VALUES = 1024
"""Elements up to which constants keep their values for the inference of shapes: sizes and axes, never weights."""


@dataclass(frozen=True)
class Tensor:
    """An input or output of a graph; a free size goes by its name in the file, ``?`` where it has none."""

    name: str
    dtype: str
    shape: list[int | str]


@dataclass(frozen=True)
class Parameters:
    """Numbers that the file stores as weights. What an exporter has folded or shared is counted as it is stored."""

    count: int
    bytes: int
    types: dict[str, int]
    """How many of each type."""


@dataclass(frozen=True)
class Flops:
    """Two per multiply-add of convolutions and matrix products, for one tile; the additions of biases are left out."""

    total: int
    shape: list[int]
    """Of the input that it is for, batch 1."""
    operators: dict[str, int]
    not_counted: list[str]
    """Operators of the graph that multiply, too, and are not in the total."""


@dataclass(frozen=True)
class ModelFacts:
    """A model file, its contract, and whether they fit."""

    kind: Literal["model"]
    file: str
    bytes: int
    """External data included."""
    producer: str
    ir: int
    opset: dict[str, int]
    operators: dict[str, int]
    """How many nodes of each, subgraphs included."""
    inputs: list[Tensor]
    outputs: list[Tensor]
    parameters: Parameters
    metadata: list[str]
    """Keys of the file's own metadata."""
    flops: Flops | None
    """None where the tile is not known, or sizes depend on more than it."""
    contract_origin: str | None
    contract: dict[str, Any] | None
    tiling: dict[str, list[int]] | None
    """Tile, overlap and align in force."""
    sha256: str | None
    """Of model and contract, as the records of a run have it."""
    error: str | None
    """Why ``segpipe run`` would refuse it."""


@dataclass(frozen=True)
class Band:
    """One band of a raster, counted from 1."""

    index: int
    dtype: str
    description: str | None
    color: str
    nodata: float | None
    mask: list[str]
    """GDAL's mask flags: where validity comes from."""
    scale: float
    offset: float
    block: list[int]


@dataclass(frozen=True)
class Needs:
    """What a model's contract would say for this raster; alpha bands are no channels."""

    channels: int
    names: list[str] | None
    spacing: list[float] | None
    """Height and width of a pixel on the ground in m, to three digits."""


@dataclass(frozen=True)
class Valid:
    """Share of valid pixels, from a decimated read."""

    share: float
    pixels: int
    """Read, of those that the raster has."""


@dataclass(frozen=True)
class Fit:
    """A raster under a model."""

    model: str
    contract_origin: str
    bands: list[dict[str, Any]]
    """``channel`` and ``band`` for each channel of the model, in its order."""
    spacing: list[float] | None
    """The contract's, in m."""
    tile: list[int]
    grid: list[int]
    """Windows per axis."""
    windows: int
    empty_windows: int | None
    """Without a valid pixel, so never inferred; None where counting them would take long."""
    memory_mb: float
    """Expected of one worker on the CPU."""


@dataclass(frozen=True)
class RasterFacts:
    """A raster, what it would need, and how a model fits it."""

    kind: Literal["raster"]
    file: str
    driver: str
    files: list[str]
    shape: list[int]
    """Rows and columns."""
    compression: str | None
    overviews: list[int]
    crs: str | None
    """An authority's code, or WKT."""
    crs_name: str | None
    transform: list[float] | None
    """From column and row to the CRS: a, b, c, d, e, f."""
    control_points: int
    rpcs: bool
    pixel_size: list[float] | None
    """Height and width in m on the ground; None where it has no place on Earth."""
    bands: list[Band]
    subdatasets: list[str]
    needs: Needs
    valid: Valid | None
    """None where it was not sampled."""
    fit: Fit | None
    notes: list[str]
    error: str | None
    """Why ``segpipe run`` would refuse it."""


Facts = ModelFacts | RasterFacts


def as_json(facts: Facts) -> str:
    """One JSON object. What JSON has no number for, as a nodata of NaN, is a string."""
    return json.dumps(plain(asdict(facts)), indent=2, ensure_ascii=False, allow_nan=False)


def plain(value: Any) -> Any:
    """The same in what JSON can take."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    known = value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value))
    return value if known else str(value)


def inspect_file(settings: Settings) -> Facts:
    """Facts of the one input; ``settings.model`` is a model for it, or the same path where none is given.

    Raises:
        InputError, ModelError, SourceError: the file, or the model for it, cannot be opened at all.
    """
    (file,) = settings.input
    alone = settings.model == Path(file)
    with gdal_options():
        if _is_model(file):
            _refuse(
                file,
                {"--model": not alone, "--bands": settings.bands},
                "a raster is inspected, and this is a model: leave it out",
            )
            return inspect_model(settings)
        if alone:
            flags = {"--contract": settings.contract, "--tile": settings.tile, "--overlap": settings.overlap}
            _refuse(file, flags, "a model is given, and this is a raster alone: give --model")
        return inspect_raster(file, settings, None if alone else settings.model)


def _refuse(file: str, flags: Mapping[str, Any], rule: str) -> None:
    """A flag that would do nothing is an error."""
    for flag, value in flags.items():
        if value:
            raise SettingsError(f"{file}: {flag} counts where {rule}")


def _is_model(file: str) -> bool:
    """By suffix where that tells; else by opening, GDAL first, for it reads a header only."""
    path = Path(file)
    suffix = path.suffix.lower()
    if is_remote(file) or suffix == ".onnx" or (path.is_file() and suffix in SUFFIXES):
        return suffix == ".onnx"
    if not path.is_file():
        raise InputError(f"inspect takes one file that exists, got {'the folder ' * path.is_dir()}{file}")
    return not _opens_as_raster(file) and _opens_as_model(path)


def _opens_as_raster(file: str) -> bool:
    try:
        DatasetReader(file, driver=list(DRIVERS), sharing=False).close()
    except RasterioError:
        return False
    return True


def _opens_as_model(path: Path) -> Literal[True]:
    try:
        read_model(path)
    except ModelError:
        raise InputError(
            f"inspect takes an ONNX model or a raster, and {path} opens as neither: rasters are {', '.join(DRIVERS)}"
        ) from None
    return True


def inspect_model(settings: Settings) -> ModelFacts:
    """All that a model file tells of itself, and whether it fits its contract.

    Raises:
        ModelError: it is not an ONNX file.
    """
    path = settings.model
    proto = read_model(path)
    origin, contract, spec, error = _checked(proto, settings)
    nodes = [node.op_type for graph in graphs(proto) for node in graph.node]
    return ModelFacts(
        kind="model",
        file=str(path),
        bytes=sum(f.stat().st_size for f in (path, *external_data(path, proto)) if f.is_file()),
        producer=f"{proto.producer_name} {proto.producer_version}".strip(),
        ir=proto.ir_version,
        opset={entry.domain or "ai.onnx": entry.version for entry in proto.opset_import},
        operators=dict(Counter(nodes).most_common()),
        inputs=[_tensor(value) for value in _free_inputs(proto)],
        outputs=[_tensor(value) for value in proto.graph.output],
        parameters=count_parameters(proto),
        metadata=[entry.key for entry in proto.metadata_props],
        flops=count_flops(proto, spec),
        contract_origin=origin,
        contract=None if contract is None else contract.model_dump(),
        tiling=None if spec is None else {key: list(getattr(spec.tiling, key)) for key in ("tile", "overlap", "align")},
        sha256=None if spec is None else spec.sha256,
        error=error,
    )


Checked = tuple[str | None, Contract | None, ModelSpec | None, str | None]


def _checked(proto: onnx.ModelProto, settings: Settings) -> Checked:
    """Where the contract was read, the contract, the model under it, what is wrong; None for what does not come about."""
    origin = contract = spec = None
    try:
        metadata = {entry.key: entry.value for entry in proto.metadata_props}
        contract, origin = find_contract(settings, metadata, *signature(proto))
        spec = read_spec(settings)
        try_out(spec)
    except SegpipeError as error:
        return origin, contract, spec, str(error)
    return origin, contract, spec, None


def _free_inputs(proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Inputs that are not weights."""
    weights = {tensor.name for tensor in proto.graph.initializer}
    return [value for value in proto.graph.input if value.name not in weights]


def _tensor(value: onnx.ValueInfoProto) -> Tensor:
    kind = value.type.tensor_type
    shape = [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in kind.shape.dim]
    return Tensor(value.name, _type_name(kind.elem_type), shape)


def _type_name(element: int) -> str:
    name = str(TensorProto.DataType.Name(element)).lower()
    return {"float": "float32", "double": "float64"}.get(name, name)


def graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto | onnx.FunctionProto]:
    """The graph, its local functions, and all branches and loop bodies in them."""
    for top in (proto.graph, *proto.functions):
        yield from _with_subgraphs(top)


def _with_subgraphs(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.GraphProto | onnx.FunctionProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _with_subgraphs(inner)


# --- parameters -----------------------------------------------------------------------------------------------------------

_QUANTISED = frozenset({1, 2, 4, 5, 6, 7})
NOT_WEIGHTS: dict[str, frozenset[int]] = {
    "Resize": frozenset({1, 2, 3}),
    "Upsample": frozenset({1}),
    "QuantizeLinear": frozenset({1, 2}),
    "DequantizeLinear": frozenset({1, 2}),
    "ConvInteger": frozenset({2, 3}),
    "MatMulInteger": frozenset({2, 3}),
    "QLinearConv": _QUANTISED,
    "QLinearMatMul": _QUANTISED,
}
"""Inputs by position that hold sizes, scales and zero points."""

BIASES = {"DequantizeLinear": 0, "QLinearConv": 8}
"""Inputs by position where an int32 is a quantised bias; elsewhere integers of 32 and 64 bits are sizes and indices."""

_SIZES = frozenset(getattr(TensorProto, name) for name in ("INT64", "UINT64", "UINT32", "BOOL", "STRING"))
_BITS = {"int4": 4, "uint4": 4, "float4e2m1": 4, "int2": 2, "uint2": 2, "float6e2m3": 6, "float6e3m2": 6}


def count_parameters(proto: onnx.ModelProto) -> Parameters:
    """Elements of all floating point and quantised constants with at least one axis, from their dimensions alone."""
    nodes = [node for graph in graphs(proto) for node in graph.node]
    left_out = {name for node in nodes for name in _inputs_at(node, NOT_WEIGHTS.get(node.op_type, ()))}
    biases = {name for node in nodes for name in _inputs_at(node, [BIASES.get(node.op_type, -1)])}
    types: Counter[str] = Counter()
    for name, tensor in _constants(proto):
        integer = tensor.data_type in _SIZES or (tensor.data_type == TensorProto.INT32 and name not in biases)
        if tensor.dims and not integer and name not in left_out:
            types[_type_name(tensor.data_type)] += math.prod(tensor.dims)
    return Parameters(types.total(), sum(-(-n * _bits(kind) // 8) for kind, n in types.items()), dict(types))


def _inputs_at(node: onnx.NodeProto, places: Iterable[int]) -> list[str]:
    return [node.input[place] for place in places if 0 <= place < len(node.input)]


def _bits(kind: str) -> int:
    return _BITS.get(kind) or 8 * helper.tensor_dtype_to_np_dtype(_element(kind)).itemsize


def _element(kind: str) -> int:
    name = {"float32": "float", "float64": "double"}.get(kind, kind)
    return int(TensorProto.DataType.Value(name.upper()))


def _constants(proto: onnx.ModelProto) -> Iterator[tuple[str, TensorProto]]:
    """Initializers and the tensors of Constant nodes, by the name that other nodes call them."""
    for graph in graphs(proto):
        yield from ((tensor.name, tensor) for tensor in getattr(graph, "initializer", ()))
        for node in graph.node:
            if node.op_type == "Constant":
                yield from ((node.output[0], a.t) for a in node.attribute if a.name == "value")


# --- operations -----------------------------------------------------------------------------------------------------------

Sizes = Sequence[int | None] | None
"""Of a tensor; None for an axis, or all of it, that is not known."""

WEIGHT_AT = {"Conv": 1, "ConvInteger": 1, "QLinearConv": 3, "ConvTranspose": 1}
PRODUCTS = frozenset({"MatMul", "MatMulInteger", "QLinearMatMul", "Gemm"})
COUNTED = PRODUCTS | WEIGHT_AT.keys()
NOT_COUNTED = frozenset({"Attention", "DeformConv", "Einsum", "GRU", "LSTM", "RNN"})


def operations(op: str, inputs: Sequence[Sequence[int]], output: Sequence[int]) -> int:
    """Two per multiply-add of one node, from the shapes of its inputs and its output; those of a node tell its groups.

    >>> operations("Conv", [(1, 4, 8, 8), (16, 2, 3, 3)], (1, 16, 8, 8)) == 2 * (16 * 8 * 8) * (2 * 3 * 3)
    True
    """
    first = inputs[0]
    if op == "ConvTranspose":  # each pixel of the input is spread by a kernel
        return 2 * math.prod(first) * math.prod(inputs[1][1:])
    if op in WEIGHT_AT:
        return 2 * math.prod(output) * math.prod(inputs[WEIGHT_AT[op]][1:])
    inner = math.prod(first) // output[0] if op == "Gemm" else first[-1]  # Gemm's first may be transposed
    return 2 * math.prod(output) * inner


Shaped = tuple[str, list[list[int]], list[int]]
"""A node that is counted: operator, shapes of its inputs, shape of its output."""


def count_flops(proto: onnx.ModelProto, spec: ModelSpec | None) -> Flops | None:
    """Operations for one tile: the contract's where there is one, else the file's own where its sizes are fixed.

    Shapes come from ONNX's inference of shapes, and where that leaves one unknown from ONNX Runtime's profiler. Both were
    tried on the bundled network, the 12 models of ``shared/data`` and four exports with fixed and with free sizes:
    inference takes 0.01 to 0.3 s, runs nothing (a volume of 256³ included) and agrees with the profiler wherever it knows
    all sizes, but loses them in the Shape and Reshape arithmetic of three of the four with free sizes (LR-ASPP, SegFormer,
    UPerNet). The profiler knows every shape, branches included, and costs one tile, as a run's first check does.
    """
    feed = _feed(proto, spec)
    nodes = feed and _inferred(proto, *feed)
    if nodes is None and feed and spec:
        nodes = _profiled(spec, *feed)
    if nodes is None or not feed:
        return None
    by_operator: Counter[str] = Counter()
    for op, inputs, output in nodes:
        by_operator[op] += operations(op, inputs, output) // feed[1][0]
    return Flops(by_operator.total(), [1, *feed[1][1:]], dict(by_operator.most_common()), _not_counted(proto))


def _feed(proto: onnx.ModelProto, spec: ModelSpec | None) -> tuple[str, list[int]] | None:
    """Name of the image input and its shape for one tile, or for a batch where the file fixes that."""
    images = [value for value in _free_inputs(proto) if spec is None or value.name == spec.input]
    if len(images) != 1:
        return None
    dims = [d.dim_value for d in images[0].type.tensor_type.shape.dim]
    if spec is None:
        return (images[0].name, [dims[0] or 1, *dims[1:]]) if dims and all(dims[1:]) else None
    channels, tile = spec.contract.channel_count, spec.tiling.tile
    rest = [*tile, channels] if spec.contract.layout == "NHWC" else [channels, *tile]
    return spec.input, [dims[0] or 1, *rest]


def _not_counted(proto: onnx.ModelProto) -> list[str]:
    functions = {function.name for function in proto.functions}
    nodes = [node for graph in graphs(proto) for node in graph.node if node.op_type not in functions]
    foreign = {f"{n.domain}.{n.op_type}" for n in nodes if n.domain not in ("", "ai.onnx")}
    return sorted(foreign | {n.op_type for n in nodes if n.op_type in NOT_COUNTED})


def _inferred(proto: onnx.ModelProto, name: str, shape: Sequence[int]) -> list[Shaped] | None:
    """Nodes with their shapes by inference; None where one is unknown or a branch decides."""
    try:
        graph = shape_inference.infer_shapes(_fixed(proto, name, shape), data_prop=True).graph
    except Exception:  # noqa: BLE001 - what inference cannot do, the profiler can
        return None
    if any(node.op_type in COUNTED for inner in _with_subgraphs(graph) if inner is not graph for node in inner.node):
        return None
    sizes: dict[str, Sizes] = {t.name: list(t.dims) for t in graph.initializer}
    sizes |= {value.name: _sizes(value) for value in (*graph.input, *graph.value_info, *graph.output)}
    counted = [node for node in graph.node if node.op_type in COUNTED]
    if not all(_known(sizes.get(name)) for node in counted for name in (*node.input, node.output[0]) if name):
        return None
    known = {name: [n or 0 for n in shape or ()] for name, shape in sizes.items()}
    return [(node.op_type, [known[name] for name in node.input if name], known[node.output[0]]) for node in counted]


def _known(shape: Sizes) -> bool:
    return shape is not None and None not in shape


def _sizes(value: onnx.ValueInfoProto) -> Sizes:
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        return None
    return [d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim]


def _fixed(proto: onnx.ModelProto, name: str, shape: Sequence[int]) -> onnx.ModelProto:
    """The same graph without weights and notes of shapes, its image input of this shape."""
    light = onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import, functions=proto.functions)
    light.graph.name = proto.graph.name
    light.graph.node.extend(proto.graph.node)
    light.graph.initializer.extend(_light(tensor) for tensor in proto.graph.initializer)
    for value in _free_inputs(proto):
        kind = value.type.tensor_type.elem_type
        light.graph.input.append(helper.make_tensor_value_info(name, kind, shape) if value.name == name else value)
    light.graph.output.extend(helper.make_empty_tensor_value_info(value.name) for value in proto.graph.output)
    return inliner.inline_local_functions(light) if light.functions else light


def _light(tensor: TensorProto) -> TensorProto:
    """A weight without its values; small constants, as sizes are, keep theirs."""
    if math.prod(tensor.dims) <= KEPT_VALUES and tensor.data_location != TensorProto.EXTERNAL:
        return tensor
    return TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)


def _profiled(spec: ModelSpec, name: str, shape: Sequence[int]) -> list[Shaped] | None:
    """Nodes with their shapes as ONNX Runtime met them in one run; None where it does not run."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")  # packed weights are missing among the inputs
    options.enable_profiling, options.enable_cpu_mem_arena, options.log_severity_level = True, False, 4
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = f"{folder}/profile"
        try:
            session = onnxruntime.InferenceSession(str(spec.path), options, providers=["CPUExecutionProvider"])
            session.run(None, {name: np.zeros(shape, spec.input_dtype)})
        except Exception:  # noqa: BLE001 - onnxruntime raises classes of its own that share no base
            return None
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return [_shaped(e["args"]) for e in events if e["name"].endswith("_kernel_time") and e["args"]["op_name"] in COUNTED]


def _shaped(arguments: Mapping[str, Any]) -> Shaped:
    """From the profiler's ``[{"float": [1, 3, 8, 8]}, ...]``."""
    inputs, outputs = ([*map(_only, arguments[key])] for key in ("input_type_shape", "output_type_shape"))
    return arguments["op_name"], inputs, outputs[0]


def _only(tensor: Mapping[str, list[int]]) -> list[int]:
    (shape,) = tensor.values()
    return shape


# --- rasters --------------------------------------------------------------------------------------------------------------


def inspect_raster(file: str, settings: Settings, model: Path | None) -> RasterFacts:
    """What GDAL and segpipe see in a raster, and with a model how it fits.

    Raises:
        SourceError, ModelError: the raster cannot be opened; the model is not an ONNX file.
    """
    errors: list[str] = []
    with gdal_errors(SourceError, f"{file} cannot be opened"):
        dataset = DatasetReader(file, driver=list(DRIVERS), sharing=False)
    with closing(dataset):
        spec = None if model is None else _spec(settings, errors)  # before pixels are read: see ModelSpec.network_mb
        fit, notes = (None, []) if spec is None else _fit(file, settings, spec, errors)
        contract = spec.contract if spec and fit else _any_contract(len(settings.bands or colours(dataset)))
        valid = None
        with _told(errors, file):
            valid = _valid_share(dataset, contract, settings.bands)
        return _raster_facts(dataset, valid, fit, notes=notes, error=next(iter(errors), None))


@contextmanager
def _told(errors: list[str], file: str) -> Iterator[None]:
    """Note an error in the words of a run, and go on with the next fact."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - as in a run, where it would end this case
        errors.append(str(foreseen(error, file)))


def _spec(settings: Settings, errors: list[str]) -> ModelSpec | None:
    read_model(settings.model)
    with _told(errors, str(settings.model)):
        return try_out(read_spec(settings))
    return None


def colours(dataset: DatasetReader) -> list[int]:
    """Bands that are not alpha, counted from 1."""
    return [i for i, c in enumerate(dataset.colorinterp, 1) if c is not ColorInterp.alpha]


def _any_contract(channels: int) -> Contract:
    """One that takes any bands: opening a raster under it makes the checks of a run that need no model."""
    values = {"channels": max(1, channels), "normalize": "none", "activation": "none"}
    return parse_contract({"version": 1, **values, "classes": [{"id": 0, "name": "any"}]}, "inspect")


def _raster_facts(
    dataset: DatasetReader, valid: Valid | None, fit: Fit | None, *, notes: list[str], error: str | None
) -> RasterFacts:
    grid = read_grid(dataset)
    size = _pixel_size(grid)
    return RasterFacts(
        kind="raster",
        file=dataset.name,
        driver=dataset.driver,
        files=list(dataset.files),
        shape=list(dataset.shape),
        compression=dataset.compression and dataset.compression.value,
        overviews=list(dataset.overviews(1)) if dataset.count else [],
        crs=str(grid) if grid.crs else None,
        crs_name=_crs_name(grid),
        transform=None if grid.transform is None else list(grid.transform)[:6],
        control_points=len(grid.gcps),
        rpcs=grid.rpcs is not None,
        pixel_size=size,
        bands=[_band(dataset, index) for index in dataset.indexes],
        subdatasets=list(dataset.subdatasets),
        needs=_needs(dataset, size),
        valid=valid,
        fit=fit,
        notes=notes,
        error=error,
    )


def _pixel_size(grid: Grid) -> list[float] | None:
    ground = ground_of(grid)
    size = () if ground is None else ground.pixel_size(grid.shape)
    return list(size) if size and all(math.isfinite(n) and n > 0 for n in size) else None


def _crs_name(grid: Grid) -> str | None:
    try:
        return None if grid.crs is None else str(CRS.from_user_input(grid.crs).name)
    except CRSError:
        return None


def _band(dataset: DatasetReader, index: int) -> Band:
    i = index - 1
    return Band(
        index=index,
        dtype=dataset.dtypes[i],
        description=dataset.descriptions[i] or None,
        color=dataset.colorinterp[i].name,
        nodata=dataset.nodatavals[i],
        mask=[flag.name for flag in dataset.mask_flag_enums[i]],
        scale=dataset.scales[i],
        offset=dataset.offsets[i],
        block=list(dataset.block_shapes[i]),
    )


def _needs(dataset: DatasetReader, size: list[float] | None) -> Needs:
    bands = colours(dataset)
    names = [name for band in bands if (name := dataset.descriptions[band - 1])]
    spacing = None if size is None else [float(f"{metres:.3g}") for metres in size]
    return Needs(len(bands), names if bands and len(names) == len(bands) else None, spacing)


def _valid_share(dataset: DatasetReader, contract: Contract, bands: tuple[int, ...] | None) -> Valid | None:
    """Through GDAL's own view of the file at a smaller size, so that a pixel is valid by the rules of a run."""
    RasterSource(dataset.name, contract, bands).close()
    if "?" in dataset.name or "://" in dataset.name:  # the view has no way to quote them
        return None
    cheap = math.prod(dataset.shape) <= CHEAP_PIXELS or dataset.overviews(1)
    rows, cols = (min(n, SAMPLES if cheap else FEW_SAMPLES) for n in dataset.shape)
    view = f"vrt://{dataset.name}?outsize={cols},{rows}"
    try:
        with closing(RasterSource(view, contract, bands)) as source:
            _, invalid = source.read(Window((0, 0), (rows, cols)))
    except SourceError as error:
        raise SourceError(str(error).replace(view, dataset.name)) from None
    return Valid(1.0 if invalid is None else 1 - float(invalid.mean()), rows * cols)


def _fit(file: str, settings: Settings, spec: ModelSpec, errors: list[str]) -> tuple[Fit | None, list[str]]:
    """How a model lies on a raster, and what a run would note; errors are noted, too."""
    fit, notes = None, []
    with _told(errors, file), closing(RasterSource(file, spec.contract, settings.bands)) as source:
        fit = _laid(file, source, spec, settings)
    with _told(errors, file):
        opened, sheet = open_sheet(Case(Path(file).stem, file), spec, settings.bands)
        opened.close()
        notes = list(sheet.notes)
    return fit, notes


def _laid(file: str, source: RasterSource, spec: ModelSpec, settings: Settings) -> Fit:
    cover, contract = Cover(source.grid.shape, spec.tiling), spec.contract
    job = Job((PlannedCase(Case("", file), cover.shape, len(cover)),))
    plan = Plan((job,), (), (), (), workers=1, calls=processors())
    spacing = contract.spacing and [n * METRES[contract.spacing_unit] for n in contract.spacing]
    return Fit(
        model=str(spec.path),
        contract_origin=spec.contract_origin,
        bands=[{"channel": c, "band": b} for c, b in zip(_channel_names(contract), source.bands, strict=True)],
        spacing=spacing,
        tile=list(spec.tiling.tile),
        grid=list(cover.counts),
        windows=len(cover),
        empty_windows=_empty_windows(source, cover),
        memory_mb=round(memory_mb(plan, Run(spec, settings)), 1),
    )


def _channel_names(contract: Contract) -> tuple[str, ...]:
    return contract.channel_names or tuple(f"channel {i}" for i in range(1, contract.channel_count + 1))


def _empty_windows(source: RasterSource, cover: Cover) -> int | None:
    if math.prod(cover.shape) > CHEAP_PIXELS:
        return None
    masks = (source.read(reflected(cover.window(index), cover.shape)[0])[1] for index in cover)
    return sum(mask is not None and bool(mask.all()) for mask in masks)
