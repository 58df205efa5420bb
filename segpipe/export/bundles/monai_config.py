"""Values of a MONAI bundle's configuration: references are followed, expressions of Python are not run.

Follows monai.bundle: ``@id`` refers to another value, ``::`` and ``#`` separate keys and positions, ``$`` begins an
expression.
"""

import ast
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segpipe.errors import ExportError
from segpipe.storage.documents import shortened

DEEPEST = 64
"""Most references that follow one another, and levels of values."""

_REFERENCE = re.compile(r"@[\w.#:-]+")
_COMMON = {"IMAGE": "image", "LABEL": "label", "PRED": "pred"}
"""``monai.utils.CommonKeys``."""

_SUMS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}


@dataclass(frozen=True)
class Expression:
    """An expression of Python that is more than numbers, texts and references."""

    text: str

    def __str__(self) -> str:
        return self.text


class Config:
    """The values of one configuration."""

    def __init__(self, source: Path, values: Mapping[str, Any]) -> None:
        self._source, self._values = source, values

    def get(self, key: str) -> Any:
        """The value of a key with its references followed; None if there is no such key."""
        return self.resolved(self._values.get(key))

    def resolved(self, value: Any, depth: int = 0) -> Any:
        """A value whose references are followed.

        Raises:
            ExportError: references go in a circle, or nowhere.
        """
        if depth > DEEPEST:
            raise ExportError(f"{self._source}: references must end, and those of {shortened(value)} do not: correct them")
        if isinstance(value, Mapping):
            return {key: self.resolved(one, depth + 1) for key, one in value.items()}
        if isinstance(value, list):
            return [self.resolved(one, depth + 1) for one in value]
        if not isinstance(value, str):
            return value
        if _REFERENCE.fullmatch(value):
            return self._at(value, depth)
        return self._computed(value[1:].strip(), depth) if value.startswith("$") else value

    def _at(self, reference: str, depth: int) -> Any:
        found: Any = self._values
        for part in re.split(r"::|#", reference[1:]):
            if isinstance(found, str):
                found = self.resolved(found, depth + 1)
            if isinstance(found, Mapping) and part in found:
                found = found[part]
            elif isinstance(found, list) and part.isdigit() and int(part) < len(found):
                found = found[int(part)]
            else:
                raise ExportError(f"{self._source}: {reference} must refer to a value of the configuration, and does not")
        return self.resolved(found, depth + 1)

    def _computed(self, text: str, depth: int) -> Any:
        """The value of a simple expression: constants, references and sums; an `Expression` for others."""
        if _REFERENCE.fullmatch(text):
            return self._at(text, depth)
        if named := re.fullmatch(r"(?:monai\.utils\.)?CommonKeys\.(\w+)", text):
            return _COMMON.get(named[1], Expression(text))
        known: dict[str, Any] = {}

        def stand_in(reference: re.Match[str]) -> str:
            name = f"reference{len(known)}"
            known[name] = self._at(reference[0], depth)
            return name

        try:
            return _value(ast.parse(_REFERENCE.sub(stand_in, text), mode="eval").body, known)
        except (SyntaxError, ValueError, TypeError, ArithmeticError, RecursionError, MemoryError):
            return Expression(text)


def _value(node: ast.expr, known: Mapping[str, Any]) -> Any:
    """Evaluate constants, lists, references and sums.

    Raises:
        ValueError: the expression is more than that.
    """
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name) and node.id in known:
        return known[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(one, known) for one in node.elts]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand, known)
    if isinstance(node, ast.BinOp) and type(node.op) in _SUMS:
        left, right = _value(node.left, known), _value(node.right, known)
        if not all(type(side) in (int, float) for side in (left, right)) and not isinstance(node.op, ast.Add):
            raise ValueError("only numbers are multiplied")
        return _SUMS[type(node.op)](left, right)
    raise ValueError("more than a sum")
