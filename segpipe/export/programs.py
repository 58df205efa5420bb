"""Inspect torch programs before they are loaded: only arithmetic is accepted, unless the user trusts them.

A program is code. TorchScript may call ``torch.save``, and loading it runs its ``__setstate__``; ``torch.export`` evaluates
expressions, imports operators by name and unpickles its samples. Therefore a copy of the archive is loaded that contains
only what was inspected here.
"""

import ast
import io
import json
import re
import tokenize
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from segpipe.errors import ExportError

NAMESPACES = {"aten", "prim", "prims", "quantized", "quantized_decomposed", "torchvision"}
"""Namespaces of operators that compute."""

HIGHER = {"cond", "while_loop", "wrap_with_set_grad_enabled", "wrap_with_autocast"}
"""Operators that take subgraphs, which are inspected as well."""

PLAIN = {
    *("add", "sub", "mul", "floordiv", "truediv", "mod", "pow", "neg", "pos", "abs", "getitem"),
    *("eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "not_", "xor", "invert"),
}
"""Functions of Python's ``operator``; not ``call``, ``attrgetter`` and ``methodcaller``."""

EXPRESSIONS = {
    *("Symbol", "Integer", "Rational", "Float", "Add", "Mul", "Pow", "Mod", "Abs", "Max", "Min", "And", "Or", "Not"),
    *("Eq", "Ne", "Lt", "Le", "Gt", "Ge", "Equality", "Unequality", "LessThan", "StrictLessThan", "GreaterThan"),
    *("StrictGreaterThan", "FloorDiv", "CleanDiv", "CeilDiv", "PythonMod", "ModularIndexing", "Where", "Identity"),
    *("IntTrueDiv", "FloatTrueDiv", "ToFloat", "TruncToInt", "TruncToFloat", "CeilToInt", "FloorToInt", "RoundToInt"),
    *("RoundDecimal", "PowByNatural", "FloatPow", "ceiling", "floor", "oo", "int_oo", "true", "false", "True", "False"),
    *("positive", "nonnegative", "integer", "real", "finite", "precision", "None"),
}
"""Names allowed in the size expressions that torch evaluates."""

_NAME = re.compile(r"[\w.:+\-/ ]*")
_SYMBOL = re.compile(r"(s|u|f|zf|zuf)\d+")
_PLAIN_TEXT = {"as_string", "as_strings", "keys"}
"""Keys of texts that torch only compares and quotes."""


class _BeyondError(Exception):
    """A program is more than arithmetic; the message names what was found."""


def opened(path: Path, form: str, *, trust: bool) -> BinaryIO:
    """Open a program for loading: the file itself if it is trusted, else a fully inspected copy.

    Raises:
        ExportError: it does more than arithmetic, or may.
    """
    if trust:
        return path.open("rb")
    try:
        parts = _parts(path)
        return _zipped(_script(parts) if form == "torchscript" else _graph(parts))
    except _BeyondError as found:
        raise ExportError(
            f"{path} is a program that may do more than arithmetic, and loading it would run it: it holds {found}. "
            "Save the network's state_dict() instead, or give --trust-pickle if you know who made it"
        ) from None


def _parts(path: Path) -> dict[str, bytes]:
    """The archive's files; refuses duplicate names, which readers resolve differently."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        folded = [name.casefold() for name in names]
        if len(set(folded)) < len(folded):
            raise _BeyondError("two files of one name")
        return {name: archive.read(name) for name in names}


def _zipped(parts: Mapping[str, bytes]) -> BinaryIO:
    copy = io.BytesIO()
    with zipfile.ZipFile(copy, "w", zipfile.ZIP_STORED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    copy.seek(0)
    return copy


# --- TorchScript ----------------------------------------------------------------------------------------------------------


def _script(parts: Mapping[str, bytes]) -> Mapping[str, bytes]:
    for name, content in parts.items():
        if name.casefold().endswith(".py"):
            _check_code(content)
        elif name.casefold().endswith(".pkl") and re.search(rb"torch\W+classes", content):
            raise _BeyondError(f"an object of C++ in {name}")
    return parts


def _check_code(source: bytes) -> None:
    """Check every name that leads into torch: an operator must follow each, since names could be rebound."""
    tokens = list(_tokens(source))
    for k, token in enumerate(tokens):
        if k and tokens[k - 1] == ".":
            continue  # an attribute of the preceding expression
        path = tuple(tokens[k + 1 : k + 8])
        if token == "torch":
            _check_operator("aten", *_dotted(path, 1))
        elif token == "ops":
            _check_operator(*_dotted(path, 2))
        elif token == "__torch__":
            if _dotted(path, 1) == ("torch",) and _dotted(path, 2)[1] == "classes":
                raise _BeyondError("a class of C++")
        elif token.startswith("rpc_"):
            raise _BeyondError(token)


def _tokens(source: bytes) -> Iterator[str]:
    kinds = (tokenize.NAME, tokenize.OP, tokenize.NUMBER, tokenize.STRING)
    try:
        for token in tokenize.tokenize(io.BytesIO(source).readline):
            if token.type == tokenize.ERRORTOKEN:
                raise tokenize.TokenError(f"line {token.start[0]}")
            if token.type in kinds:
                yield token.string
    except (tokenize.TokenError, SyntaxError, UnicodeDecodeError) as error:
        raise _BeyondError(f"code that cannot be read ({error})") from None


def _dotted(path: tuple[str, ...], count: int) -> tuple[str, ...]:
    """The names that follow, each after a dot."""
    if len(path) < 2 * count or any(dot != "." for dot in path[: 2 * count : 2]):
        raise _BeyondError("a name for torch itself")
    return path[1 : 2 * count : 2]


def _check_operator(namespace: str, name: str) -> None:
    if namespace not in NAMESPACES or name.startswith(("rpc", "Python")):
        raise _BeyondError(f"{namespace}::{name}")
    schemas = torch._C._jit_get_schemas_for_operator(f"{namespace}::{name}")
    if any("file" in argument.name for schema in schemas for argument in schema.arguments):
        raise _BeyondError(f"{namespace}::{name}, which takes the name of a file")


# --- torch.export ---------------------------------------------------------------------------------------------------------


def _graph(parts: Mapping[str, bytes]) -> dict[str, bytes]:
    """The parts of the archive that a program needs, inspected, and with empty samples; all others are dropped.

    The parts lie in one folder; before torch 2.8 they lay at the top level.
    """
    root = "" if "version" in parts else next(iter(parts)).split("/", 1)[0] + "/"
    if any(not name.startswith(root) for name in parts):
        raise _BeyondError("files beside its own")
    inner = {name.removeprefix(root): content for name, content in parts.items()}
    if compiled := next((name for name in inner if name.startswith("data/aotinductor/")), None):
        raise _BeyondError(f"compiled code, {compiled}")
    if others := [name for name in inner if name.startswith("models/") and name != "models/model.json"]:
        raise _BeyondError(f"another model, {others[0]}")
    return {root + name: _part(name, content) for name, content in inner.items() if name.startswith(_NEEDED)}


_NEEDED = (
    *("archive_format", "archive_version", "byteorder", "version", ".data/", "models/model.json", "serialized_"),
    *("data/weights/", "data/constants/", "data/sample_inputs/model.pt"),
)
_SAMPLES = ("data/sample_inputs/model.pt", "serialized_example_inputs.pt")
_PICKLES = tuple(f"data/{kind}/model.pt" for kind in ("weights", "constants")) + tuple(
    f"serialized_{kind}.{suffix}" for kind in ("state_dict", "constants") for suffix in ("pt", "json")
)


def _part(name: str, content: bytes) -> bytes:
    if name in _SAMPLES:
        return b""
    if name in _PICKLES:
        _check_pickle(name, content)
    elif name in ("models/model.json", "serialized_exported_program.json"):
        return json.dumps(_checked(json.loads(content))).encode()
    elif name.endswith("_config.json"):
        _check_payload(json.loads(content))
    return content


def _check_pickle(name: str, content: bytes) -> None:
    """Refuse pickles of more than tensors: torch falls back to executing them."""
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except Exception:  # noqa: BLE001 - torch passes on whatever its readers raise
        raise _BeyondError(f"a pickle of more than tensors in {name}") from None


def _check_payload(config: Any) -> None:
    for entry in config["config"].values():
        if entry.get("use_pickle") or str(entry["path_name"]).startswith(("custom_obj", "opaque_obj")):
            raise _BeyondError(f"a pickle, {entry['path_name']}")


def _checked(value: Any, key: str = "") -> Any:
    """Part of the program's JSON without what torch would execute and the graph does not need."""
    if key == "metadata":
        return {}
    if key == "guards_code":
        return []
    if key == "custom_obj_values" and value:
        raise _BeyondError("an object of C++")
    if isinstance(value, dict):
        for name in value:
            _check_text(name, "a name")
        return {name: _checked(part, name) for name, part in value.items()}
    if isinstance(value, list):
        return [_checked(part, key) for part in value]
    if isinstance(value, str):
        _CHECKS.get(key, _check_text)(value, key)
    return value


def _check_text(text: str, key: str) -> None:
    if key not in _PLAIN_TEXT and not _NAME.fullmatch(text):
        raise _BeyondError(f"{text[:60]!r} for {key}")


def _check_target(target: str, key: str) -> None:
    names = target.split(".")
    if names[:2] == ["torch", "ops"] and len(names) == 5 and all(n.isidentifier() for n in names):
        _check_operator(*names[2:4])
    elif target not in _TARGETS and not re.fullmatch(r"torch\.sym_[a-z]+|math\.[a-z0-9]+", target):
        raise _BeyondError(f"the {key} {target[:60]}")


_TARGETS = {f"torch.ops.higher_order.{name}" for name in HIGHER} | {f"_operator.{name}" for name in PLAIN}


def _check_expression(text: str, key: str) -> None:
    """Accept names, numbers, brackets and operators only: no attributes, and quoted text must be a name."""
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise _BeyondError(f"{text[:60]!r} for {key}") from None
    for node in ast.walk(tree):
        named = isinstance(node, ast.Name) and not (node.id in EXPRESSIONS or _SYMBOL.fullmatch(node.id))
        quoted = isinstance(node, ast.Constant) and isinstance(node.value, str) and not node.value.isidentifier()
        if named or quoted or not isinstance(node, _ARITHMETIC):
            raise _BeyondError(f"{text[:60]!r} for {key}")


_ARITHMETIC = (
    *(ast.Expression, ast.Call, ast.keyword, ast.Name, ast.Load, ast.Constant, ast.BinOp, ast.UnaryOp, ast.operator),
    *(ast.unaryop, ast.Compare, ast.cmpop, ast.BoolOp, ast.boolop, ast.Tuple),
)


def _check_spec(text: str, key: str) -> None:
    """Check the structure of inputs and outputs: lists, tuples and dictionaries by key."""
    kinds = re.findall(r'"type": ?"([^"]*)"', text)
    if "__enum__" in text or any(not re.fullmatch(r"(builtins|collections)\.\w+", kind) for kind in kinds):
        raise _BeyondError(f"an {key} of more than lists and dictionaries")


_CHECKS = {"target": _check_target, "expr_str": _check_expression, "in_spec": _check_spec, "out_spec": _check_spec}
