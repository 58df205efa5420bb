"""Facts about a model file, and whether it fits its contract."""

from collections import Counter

import onnx

from segpipe.contract import Contract
from segpipe.errors import SegpipeError
from segpipe.inspect.facts import ModelFacts, TensorFacts
from segpipe.inspect.flops import count_flops
from segpipe.inspect.graphs import free_inputs, graphs, type_name
from segpipe.inspect.parameters import count_parameters
from segpipe.network.fit import find_contract
from segpipe.network.model_file import external_data, read_model
from segpipe.network.read import read_spec
from segpipe.network.spec import ModelSpec
from segpipe.pipeline.model_check import try_out
from segpipe.settings import Settings
from segpipe.storage.existence import is_file


def inspect_model(settings: Settings) -> ModelFacts:
    """Gather the facts of a model file, and check whether it fits its contract.

    Raises:
        ModelError: it is not an ONNX file.
    """
    (path,) = settings.model
    proto = read_model(path)
    origin, contract, spec, error = _checked(proto, settings)
    nodes = [node.op_type for graph in graphs(proto) for node in graph.node]
    return ModelFacts(
        kind="model",
        file=str(path),
        bytes=sum(f.stat().st_size for f in (path, *external_data(path, proto)) if is_file(f)),
        producer=f"{proto.producer_name} {proto.producer_version}".strip(),
        ir=proto.ir_version,
        opset={entry.domain or "ai.onnx": entry.version for entry in proto.opset_import},
        operators=dict(Counter(nodes).most_common()),
        inputs=[_tensor(value) for value in free_inputs(proto)],
        outputs=[_tensor(value) for value in proto.graph.output],
        parameters=count_parameters(proto),
        metadata=[entry.key for entry in proto.metadata_props],
        flops=count_flops(proto, spec, runs=error is None),
        contract_origin=origin,
        contract=None if contract is None else contract.model_dump(),
        tiling=None if spec is None else _tiling(spec),
        sha256=None if spec is None else spec.sha256,
        error=error,
    )


def _tiling(spec: ModelSpec) -> dict[str, list[int]]:
    """Tile, overlap and align of a run, and the margin if there is one."""
    tiling = spec.tiling
    sizes = {"tile": tiling.input, "overlap": tiling.overlap, "align": tiling.align}
    sizes |= {"margin": tiling.margin} if any(tiling.margin) else {}
    return {key: list(value) for key, value in sizes.items()}


Checked = tuple[str | None, Contract | None, ModelSpec | None, str | None]


def _checked(proto: onnx.ModelProto, settings: Settings) -> Checked:
    """Origin of the contract, contract, model spec and error; None for each that could not be reached."""
    origin = contract = spec = None
    try:
        contract, origin = find_contract(settings, settings.model[0], proto)
        spec = read_spec(settings)
        try_out(spec)
    except SegpipeError as error:
        return origin, contract, spec, str(error)
    return origin, contract, spec, None


def _tensor(value: onnx.ValueInfoProto) -> TensorFacts:
    kind = value.type.tensor_type
    shape = [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in kind.shape.dim]
    return TensorFacts(value.name, type_name(kind.elem_type), shape)
