"""Convert a torch network to one ONNX graph: image in, class scores of the image's size out."""

import contextlib
import gc
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, compose, helper, numpy_helper
from onnxscript.rewriter.rules.common import slice_split_rule
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from segpipe.errors import ExportError
from segpipe.export.families import Network, in_a_line
from segpipe.export.large import loadable
from segpipe.export.outputs import outputs_of
from segpipe.export.stride import Size, is_strided, total_stride
from segpipe.network.device import open_session
from segpipe.network.scaling import Scaling

OPSET = 20
IR_VERSION = 10
"""The newest that ONNX Runtime 1.27 supports; the exporter's default is newer."""

TRACED_OPSET = 17
RAW_TYPES = {"uint8": TensorProto.UINT8, "uint16": TensorProto.UINT16, "int16": TensorProto.INT16}


class Scorer(nn.Module):
    """Wraps a network so that its scores have the size of the image without its margin, whatever its output's form and size.

    Args:
        network: the network.
        name: its output with the scores.
        margin: pixels on each side without scores; None: scores cover the image, and are upsampled if they are coarser.
    """

    def __init__(self, network: nn.Module, name: str = "", margin: Sequence[int] | None = None) -> None:
        super().__init__()
        self.network, self.name, self.margin = network, name, margin

    def own(self, image: Tensor) -> Tensor:
        """Scores ``(batch, classes, rows, cols)`` at the network's own output size."""
        scores = outputs_of(self.network(image))[self.name]
        return scores[:, None] if scores.ndim == 3 else scores

    def forward(self, image: Tensor) -> Tensor:
        """Scores at the image's size, upsampled bilinearly with half-pixel centres, or those of its middle."""
        scores = self.own(image)
        if self.margin is not None:
            whole = scores.shape[-2:] == image.shape[-2:]
            return scores[(..., *(slice(n, -n or None) for n in self.margin))] if whole else scores
        if scores.shape[-2:] != image.shape[-2:]:
            scores = nn.functional.interpolate(scores, size=image.shape[-2:], mode="bilinear", align_corners=False)
        return scores


def score(scorer: nn.Module, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Torch's scores for images ``(batch, channels, rows, cols)``."""
    return _scored(scorer, images)


def own_score(scorer: Scorer, images: NDArray[Any]) -> NDArray[np.float32]:
    """Torch's scores at the network's own output size."""
    return _scored(scorer.own, images)


def _scored(forward: Callable[[torch.Tensor], torch.Tensor], images: NDArray[Any]) -> NDArray[np.float32]:
    with torch.inference_mode():
        return np.asarray(forward(torch.from_numpy(np.ascontiguousarray(images))).float().numpy(), np.float32)


def output_stride(network: nn.Module, example: NDArray[np.float32]) -> int:
    """Total stride by the operators of a network, a module or a program; 1 if they show none."""
    with torch.inference_mode(), _Sizes() as seen:
        network(torch.from_numpy(example))
    rows, cols = example.shape[-2:]
    return total_stride(seen.sizes, (rows, cols))


class _Sizes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the sizes of maps before and after each operator that can reduce them by a stride."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sizes: list[tuple[Size, Size]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        output = func(*args, **(kwargs or {}))
        maps = [t for t in (args[:1], output if isinstance(output, tuple) else (output,)) for t in t[:1]]
        if len(maps) == 2 and all(isinstance(t, Tensor) and t.ndim == 4 for t in maps):
            before, after = ((t.shape[-2], t.shape[-1]) for t in maps)
            if _may_stride(str(func), args) and is_strided(str(func), before, after):
                self.sizes.append((before, after))
        return output


def _may_stride(operator: str, args: Sequence[Any]) -> bool:
    """Whether an operator reduces maps by a stride; convolutions of stride 1 without padding reduce them, too."""
    return not ("convolution" in operator and len(args) > 3 and all(step == 1 for step in args[3]))


def to_onnx(network: Network, shape: tuple[int, ...], *, free_size: bool) -> onnx.ModelProto:
    """Export one graph from ``image`` to ``scores`` with a free batch axis, and free rows and columns if asked.

    Args:
        network: in evaluation mode.
        shape: shape of one image, ``(channels, rows, cols)``.
        free_size: leave rows and columns free.

    Raises:
        ExportError: torch cannot export it.
    """
    example = torch.zeros(2, *shape)
    with _quiet(), _hurried():
        try:
            proto = _scripted(network, example) if network.traced else _exported(network, example, free_size)
        except Exception as error:  # noqa: BLE001 - the exporter passes on whatever its passes raise
            raise ExportError(f"torch cannot export this network: {_root(error)} (-v shows its log)") from None
    _tidy(proto, whole=network.margin is None)
    return proto


def _exported(network: Network, example: Tensor, free_size: bool) -> onnx.ModelProto:
    free = torch.export.Dim.DYNAMIC
    sizes = {0: free, 2: free, 3: free} if free_size else {0: free}
    scorer = Scorer(network.module, network.scores, network.margin)
    program = torch.onnx.export(
        scorer if _is_program(network.module) else scorer.eval(),
        (example,),
        input_names=["image"],
        output_names=["scores"],
        dynamic_shapes=(sizes,),
        opset_version=OPSET,
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    return program.model_proto  # type: ignore[union-attr]


def _is_program(module: nn.Module) -> bool:
    """Whether a network is a program, whose mode is fixed, perhaps with its inputs joined to one."""
    return any(isinstance(part, torch.fx.GraphModule) for part in module.modules())


def _scripted(network: Network, example: Tensor) -> onnx.ModelProto:
    """Export by tracing, which keeps the batch free; a script that computes with sizes is recorded while it runs instead."""
    try:
        proto = _traced(network, example)
        with loadable(proto) as graph:
            open_session(graph, arena="none")
    except Exception:  # noqa: BLE001 - any error of the exporter, or of ONNX Runtime for its result
        recorded = make_fx(Scorer(network.module, network.scores, network.margin).eval())(example)
        return _exported(replace(network, module=recorded, scores=""), example, False)
    return proto


def _traced(network: Network, example: Tensor) -> onnx.ModelProto:
    """Trace a TorchScript program, the only way to export it; sizes that it computes are frozen.

    At the end the exporter sets the mode of the whole on all parts: without ``eval`` dropout would be on.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "traced.onnx"))
        torch.onnx.export(
            torch.jit.trace(Scorer(network.module, network.scores, network.margin).eval(), example, check_trace=False),  # type: ignore[no-untyped-call]
            (example,),
            path,
            input_names=["image"],
            output_names=["scores"],
            dynamic_axes={"image": {0: "batch"}, "scores": {0: "batch"}},
            opset_version=TRACED_OPSET,
            dynamo=False,
        )
        return onnx.load(path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter, whose notes concern its own passes."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export", "torch.jit")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextlib.contextmanager
def _hurried() -> Iterator[None]:
    """Switch off two things that take more than half of the export of a large graph, and do not change it.

    At every node, onnxscript's rule for pairs of slices lists all nodes before it sees that the node is no slice. And Python
    collects garbage again and again, which finds hardly any among millions of small objects.
    """
    match, collects = slice_split_rule.match, gc.isenabled()

    def match_slice(model: Any, graph: Any, node: Any, **options: Any) -> Any:
        return match(model, graph, node, **options) if node.op_type == "Slice" else None

    slice_split_rule.match = match_slice
    gc.disable()
    try:
        yield
    finally:
        slice_split_rule.match = match
        if collects:
            gc.enable()


def _root(error: BaseException) -> str:
    """The first lines of the original error, which the exporter wraps in pages of its own."""
    while error.__cause__ is not None:
        error = error.__cause__
    return in_a_line(error)


def _tidy(proto: onnx.ModelProto, *, whole: bool) -> None:
    """Name the free sizes, and drop the exporter's notes, which contain paths of this machine.

    ``whole`` says that scores have the size of the image.
    """
    graph = proto.graph
    sizes = graph.input[0].type.tensor_type.shape.dim
    names = {sizes[axis].dim_param: name for axis, name in ((0, "batch"), (2, "rows"), (3, "cols"))}
    names.pop("", None)
    for part in (graph, *graph.input, *graph.output, *graph.node, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")
    for part in graph.node:
        part.ClearField("doc_string")
    for value in (*graph.input, *graph.output, *graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param in names:
                size.dim_param = names[size.dim_param]
    scored = ["batch", "", "rows", "cols"] if whole else ["batch", "", "scored_rows", "scored_cols"]
    for axis in (0, 2, 3):
        if sizes[axis].dim_param:
            graph.output[0].type.tensor_type.shape.dim[axis].dim_param = scored[axis]
    proto.ir_version = IR_VERSION
    del proto.metadata_props[:]


def topologically_sorted(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Sort nodes topologically, as ONNX requires; the converter to fp16 appends its casts at the end."""
    made = {name for node in proto.graph.node for name in node.output}
    waiting, known, ordered = list(proto.graph.node), set[str](), list[onnx.NodeProto]()
    while waiting:
        held = []
        for node in waiting:
            if _taken(node) & made <= known:
                ordered.append(node)
                known.update(node.output)
            else:
                held.append(node)
        if len(held) == len(waiting):
            raise ExportError("the exported graph goes in a circle, which is not the network's fault: please report it")
        waiting = held
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in ordered]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return proto


def _taken(node: onnx.NodeProto) -> set[str]:
    """Names that a node consumes, itself or in its subgraphs."""
    inner = (n for attribute in node.attribute for n in attribute.g.node)
    return {*node.input}.union(*(_taken(n) for n in inner))


def scaled_inside(proto: onnx.ModelProto, scaling: Scaling, raw: str) -> onnx.ModelProto:
    """Prepend the host's scaling to a graph, so that it takes raw pixels: cast, times gain, plus bias, clip."""
    opset = next(o.version for o in proto.opset_import if o.domain in ("", "ai.onnx"))
    sizes = [d.dim_param or d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]
    head = helper.make_model(
        _scaling_graph(scaling, RAW_TYPES[raw], sizes),
        ir_version=proto.ir_version,
        opset_imports=[helper.make_opsetid("", opset)],
    )
    name = proto.graph.input[0].name
    merged = compose.merge_models(
        compose.add_prefix(head, "scaling/"), _without_other_domains(proto, head), io_map=[("scaling/scaled", name)]
    )
    merged.graph.input[0].name = name
    for node in merged.graph.node:
        node.input[:] = [name if i == "scaling/pixels" else i for i in node.input]
    return merged


def _without_other_domains(proto: onnx.ModelProto, head: onnx.ModelProto) -> onnx.ModelProto:
    """Make both models import the same domains, as merging requires."""
    known = {o.domain for o in head.opset_import}
    head.opset_import.extend(o for o in proto.opset_import if o.domain not in known)
    return proto


def _scaling_graph(scaling: Scaling, dtype: int, sizes: Sequence[int | str]) -> onnx.GraphProto:
    constants = {"gain": scaling.gain, "bias": scaling.bias, "low": scaling.low, "high": scaling.high}
    steps = [("Mul", "gain"), ("Add", "bias")]
    if scaling.low is not None:
        steps += [("Max", "low"), ("Min", "high")]
    nodes = [helper.make_node("Cast", ["pixels"], ["x0"], to=TensorProto.FLOAT)]
    nodes += [helper.make_node(op, [f"x{i}", name], [f"x{i + 1}"]) for i, (op, name) in enumerate(steps)]
    nodes[-1].output[0] = "scaled"
    return helper.make_graph(
        nodes,
        "scaling",
        [helper.make_tensor_value_info("pixels", dtype, sizes)],
        [helper.make_tensor_value_info("scaled", TensorProto.FLOAT, sizes)],
        [
            numpy_helper.from_array(value.astype(np.float32).reshape(-1, 1, 1), name)
            for name, value in constants.items()
            if value is not None
        ],
    )
