"""Contracts from files and from the metadata of models."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from segpipe.contract.contract import Contract
from segpipe.contract.deepness import check_deepness_type, deepness_values
from segpipe.contract.keys import FORMS
from segpipe.errors import ContractError
from segpipe.storage.documents import MOST_BYTES, DocumentError, parse_json, read_toml
from segpipe.storage.invalid import readable, shown_value

METADATA_KEY = "segpipe"


def parse_contract(values: Mapping[str, Any], origin: str) -> Contract:
    """Check the keys of a contract; messages name ``origin`` as their source."""
    try:
        return Contract.model_validate(dict(values))
    except ValidationError as error:
        raise ContractError(f"{origin}: {readable(error, FORMS)}") from None


def any_contract(channels: int, **terms: Any) -> Contract:
    """A contract that takes any pixels, so that a file is opened with all checks of a run that need no model."""
    values = {"channels": max(1, channels), "normalize": "none", "activation": "none", **terms}
    return parse_contract({"version": 1, **values, "classes": [{"id": 0, "name": "any"}]}, "a contract of any pixels")


def read_contract(path: Path) -> Contract:
    """The contract in a TOML file."""
    try:
        values = read_toml(path)
    except DocumentError as error:
        raise ContractError(f"the contract {path} {error}") from None
    return parse_contract(values, str(path))


def contract_of_metadata(metadata: Mapping[str, str], channels: int | None, scores: int | None = None) -> Contract | None:
    """The contract inside an ONNX file, in segpipe's form or in Deepness's; None if there is none.

    Args:
        metadata: the file's ``metadata_props``.
        channels: number of channels of the model's input, if fixed.
        scores: number of channels of the model's output, if fixed.
    """
    if METADATA_KEY in metadata:
        try:
            values = parse_json(metadata[METADATA_KEY], most=MOST_BYTES)
        except DocumentError as error:
            raise ContractError(f'metadata "{METADATA_KEY}" of the model {error}') from None
        if not isinstance(values, dict):
            raise ContractError(f'metadata "{METADATA_KEY}" of the model must be a JSON object, got {shown_value(values)}')
        return parse_contract(values, f'metadata "{METADATA_KEY}" of the model')
    check_deepness_type(metadata)
    values = deepness_values(metadata, channels, scores)
    if {"mean", "std"} <= values.keys():
        return parse_contract({"version": 1, **values}, "Deepness metadata of the model")
    return None
