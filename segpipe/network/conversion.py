"""Models whose IR version or opset is newer than the installed ONNX Runtime takes: converted down, and compared."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, version_converter

from segpipe.errors import ModelError, one_line
from segpipe.network.device import open_session
from segpipe.network.form import all_nodes

if TYPE_CHECKING:
    from segpipe.network.spec import ModelSpec

LOG = logging.getLogger("segpipe")

ONNX = ("", "ai.onnx")
"""Names of ONNX's own domain."""

OLDEST_IR, OLDEST_OPSET = 8, 18
"""What every supported ONNX Runtime takes."""

TRIED = 64
"""Least side of the tile on which a converted graph is compared."""

CLOSE = 1e-3
"""Largest difference of a score from that of the graph as it was, relative to the largest score."""


@dataclass(frozen=True, slots=True)
class OlderForm:
    """What a graph is converted to."""

    ir: int
    opset: int
    changed: tuple[str, ...]
    """Operators whose definition is another one there; empty: only the numbers change."""


def older_form(proto: onnx.ModelProto, path: Path) -> OlderForm | None:
    """What a graph must be converted to; None if ONNX Runtime takes it as it is.

    Raises:
        ModelError: onnx cannot convert it; the message has the version to install.
    """
    ir, opset = proto.ir_version, _opset(proto)
    if opset is None or takes(ir, opset):
        return None
    own = _limits(ir, opset)
    if own is None or opset > onnx.defs.onnx_opset_version():
        raise ModelError(_install(path, ir, opset, own, "the installed onnx does not know it, either"))
    older = OlderForm(*own, changed=tuple(sorted(set(_changed(proto, opset, own[1])))))
    _convert(proto, older, path)
    LOG.warning(
        "%s has opset %d and IR version %d; ONNX Runtime %s takes %d and %d, to which it is converted",
        path, opset, ir, onnxruntime.__version__, older.opset, older.ir,
    )  # fmt: skip
    return older


def model_for(spec: "ModelSpec") -> str | bytes:
    """The model as a session opens it: its path, or its converted graph."""
    return str(spec.path) if spec.older is None else _converted(spec.path, spec.sha256, spec.older)


@lru_cache(maxsize=4)
def _converted(path: Path, sha256: str, older: OlderForm) -> bytes:
    """Cached by the hash of the file, so that all sessions of a process share one."""
    del sha256
    graph: bytes = _convert(onnx.load(str(path), load_external_data=False), older, path).SerializeToString()
    return graph


@cache
def takes(ir: int, opset: int) -> bool:
    """Whether ONNX Runtime opens a graph of these versions."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "probe", ends[:1], ends[1:])
    model = helper.make_model(graph, ir_version=ir, opset_imports=[helper.make_opsetid("", opset)])
    try:
        open_session(model.SerializeToString(), arena="none")
    except ModelError:
        return False
    return True


def _limits(ir: int, opset: int) -> tuple[int, int] | None:
    """The newest IR version and opset that ONNX Runtime takes, at most these."""
    irs = (n for n in range(ir, OLDEST_IR - 1, -1) if takes(n, OLDEST_OPSET))
    opsets = (n for n in range(opset, OLDEST_OPSET - 1, -1) if takes(OLDEST_IR, n))
    newest = next(irs, None), next(opsets, None)
    return None if None in newest else newest  # type: ignore[return-value]


def _opset(proto: onnx.ModelProto) -> int | None:
    return next((entry.version for entry in proto.opset_import if entry.domain in ONNX), None)


def _changed(proto: onnx.ModelProto, opset: int, older: int) -> Iterator[str]:
    """Yield the operators whose definition is newer than an older opset."""
    for node in all_nodes(proto):
        known = node.domain in ONNX and onnx.defs.has(node.op_type, opset)
        if known and onnx.defs.get_schema(node.op_type, opset).since_version > older:
            yield node.op_type


def _convert(proto: onnx.ModelProto, older: OlderForm, path: Path) -> onnx.ModelProto:
    """A copy of a graph in older versions; where no operator changes, only their numbers do."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    if older.changed:
        try:
            copy = version_converter.convert_version(copy, older.opset)
        except Exception as error:  # noqa: BLE001 - onnx passes on what its converter in C++ raises
            why = f"onnx cannot convert {', '.join(older.changed)} ({one_line(error)})"
            raise ModelError(_install(path, proto.ir_version, _opset(proto), (older.ir, older.opset), why)) from None
    for entry in (*copy.opset_import, *(entry for function in copy.functions for entry in function.opset_import)):
        if entry.domain in ONNX:
            entry.version = min(entry.version, older.opset)
    copy.ir_version = older.ir
    return copy


def _install(path: Path, ir: int, opset: int | None, own: tuple[int, int] | None, why: str) -> str:
    version = onnxruntime.__version__
    known = "" if own is None else f" up to opset {own[1]} and IR version {own[0]}"
    release = next((row[0] for row in helper.VERSION_TABLE if opset is not None and row[2] >= opset and row[1] >= ir), None)
    since = "" if release is None else f", one that takes the models of onnx {release}"
    mend = "" if own is None else f", or export the model with opset {own[1]}"
    return (
        f"{path} has opset {opset} and IR version {ir}, and ONNX Runtime {version} takes{known or ' neither'}; {why}: "
        f"install an onnxruntime newer than {version}{since}{mend}"
    )


def check_converted(spec: "ModelSpec", tiles_of: Callable[["ModelSpec"], NDArray[Any]]) -> None:
    """Compare a converted graph on a tile with the graph as it was, computed by onnx's reference implementation.

    Where no operator changed, there is nothing to compare.

    Args:
        spec: the model.
        tiles_of: makes a batch of noise ``(batch, channels, *tile)``, of which a corner is taken where sizes are free.

    Raises:
        ModelError: the two differ, or the reference cannot run the graph; the message has the version to install.
    """
    if spec.older is None or not spec.older.changed:
        return
    from onnx.reference import ReferenceEvaluator  # which is seldom needed, and takes 16 ms

    proto = onnx.load(str(spec.path))
    corner: tuple[Any, ...] = (..., *_corner(spec, proto))
    given = spec.given(np.ascontiguousarray(tiles_of(spec)[corner]))
    why = "its conversion gives other scores"
    try:
        (there,) = ReferenceEvaluator(proto).run([spec.output], given)
        (here,) = open_session(model_for(spec), arena="none", folder=spec.path.parent).run([spec.output], given)
    except Exception as error:  # noqa: BLE001 - the reference raises what its operators raise
        why, there, here = f"its conversion cannot be checked ({one_line(error)})", np.zeros(1), np.ones(1)
    there, here = np.asarray(there, np.float64), np.asarray(here, np.float64)
    if there.shape != here.shape or np.abs(there - here).max() > CLOSE * (np.abs(there).max() or 1.0):
        raise ModelError(_install(spec.path, proto.ir_version, _opset(proto), (spec.older.ir, spec.older.opset), why))


def _corner(spec: "ModelSpec", proto: onnx.ModelProto) -> list[slice]:
    """Slices of a small tile where the graph leaves its sizes free, else of all of it."""
    image = next(value for value in proto.graph.input if value.name == spec.input)
    shape = [axis.dim_value for axis in image.type.tensor_type.shape.dim]
    axes = zip(spec.contract.layout.spatial(shape), spec.tiling.align, strict=True)
    return [slice(None) if fixed else slice(-(-TRIED // align) * align) for fixed, align in axes]
