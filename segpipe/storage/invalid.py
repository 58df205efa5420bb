"""Describe invalid values of a document or of settings on one line, in plain words."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from segpipe.storage.documents import WIDEST, shortened

LISTED = 5
"""Maximum number of errors that a message shows; it counts the others."""

RULES = {
    "string_type": "must be text",
    "string_too_long": "must have at most {max_length} characters",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number of fewer digits",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be finite",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "dict_type": "must be a table of keys and values",
    "model_type": "must be a table of keys and values",
    "path_type": "must be a path",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "too_short": "must have {min_length} or more values",
    "too_long": "must have at most {max_length} values",
}
"""A rule for each error type of pydantic, whose own messages use terms of Python."""

FORMS_OF_PYDANTIC = {"bool", "int", "float", "str", "constrained-str", "constrained-int", "constrained-float", "path"}
"""Names of types in the location of an error; other types have a bracket."""

_UNITS = {list: "values", dict: "keys", str: "characters"}


def readable(error: ValidationError, forms: Mapping[str, str] | None = None) -> str:
    """A validation error on one line: a clause per key, with its value.

    Args:
        error: the error of pydantic.
        forms: the forms of keys whose value may have several, worded to follow "must be".
    """
    clauses = [*dict.fromkeys(_clauses(error.errors(), forms or {}))]
    more = len(clauses) - LISTED
    return "; ".join(clauses[:LISTED]) + (f"; and {more} more like these" if more > 0 else "")


def _clauses(lines: Sequence[Any], forms: Mapping[str, str]) -> Iterator[str]:
    for line in lines:
        own = _key_with_forms(line, forms)
        if own and not _is_own_rule(line):
            if not any(_is_own_rule(other) for other in lines if _key_with_forms(other, forms) == own):
                yield f"{_named(own)}: must be {forms[str(own[-1])]}{_given(own, lines)}"
        elif not _follows(line, lines):
            yield _clause(line)


def _is_own_rule(line: Any) -> bool:
    """Whether an error says more than the allowed forms: a rule of segpipe, or a rule for all forms."""
    missing = line["type"] == "missing" and isinstance(line["loc"][-1], str)
    return missing or line["type"] in ("value_error", "finite_number", "string_too_long")


def _key_with_forms(line: Any, forms: Mapping[str, str]) -> tuple[Any, ...]:
    """Location of the innermost key of an error whose value may have several forms; empty if there is none."""
    place = line["loc"]
    named = [n for n, part in enumerate(place) if part in forms]
    return tuple(place[: named[-1] + 1]) if named else ()


def _given(own: tuple[Any, ...], lines: Sequence[Any]) -> str:
    """The whole value of a key for a message, if an error concerns a whole form."""
    whole = (line["input"] for line in lines if line["loc"][:-1] == own and isinstance(line["loc"][-1], str))
    same = (line["input"] for line in lines if line["loc"] == own)
    short = (line["input"] for line in lines if line["loc"][:-2] == own and line["type"] == "missing")
    return next((f", got {shown_value(value)}" for value in (*same, *whole, *short)), "")


def _follows(line: Any, lines: Sequence[Any]) -> bool:
    """Whether a list is too short only because one of its values is invalid."""
    place = line["loc"]
    return line["type"] == "too_short" and any(other["loc"][:-1] == place for other in lines)


def _clause(line: Any) -> str:
    key, kind = _named(line["loc"]), line["type"]
    if kind == "extra_forbidden":
        return f"unknown key {key}"
    if kind == "missing" and isinstance(line["loc"][-1], int):
        least = line["loc"][-1] + 1
        return f"{_named(line['loc'][:-1])}: must have {least} or more values, got {shown_value(line['input'])}"
    if kind == "missing":
        return f"missing key {key}"
    rule = RULES[kind].format(**_limits(line.get("ctx", {}))) if kind in RULES else line["msg"].removeprefix("Value error, ")
    return f"{key}: {rule}, got {shown_value(line['input'])}" if key else rule


def _limits(context: Mapping[str, Any]) -> dict[str, Any]:
    """Values that fill in a rule; whole numbers without a decimal point."""
    return {key: int(v) if isinstance(v, float) and v.is_integer() else v for key, v in context.items()}


def _named(place: Sequence[Any]) -> str:
    """Keys and numbers, outermost first, without the names of types that pydantic tried."""
    return shortened(".".join(str(part) for part in place if not _is_form(part)))


def _is_form(part: Any) -> bool:
    return isinstance(part, str) and ("[" in part or part in FORMS_OF_PYDANTIC)


def shown_value(value: Any) -> str:
    """A value for a message; for a long one, its length."""
    if isinstance(value, list | dict | str) and len(value) > WIDEST:
        return f"{len(value)} {_UNITS[type(value)]}"
    if isinstance(value, tuple):
        return shortened(", ".join(map(str, value)))
    return shortened(str(value) if isinstance(value, Path) else repr(value))
