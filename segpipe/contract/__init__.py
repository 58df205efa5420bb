"""The contract of a model, which travels inside its ONNX file: its keys, their checks, and where it is read from."""

from segpipe.contract.contract import Contract
from segpipe.contract.keys import DEFAULT_ALIGN, SegmentationClass
from segpipe.contract.reading import METADATA_KEY, any_contract, contract_of_metadata, parse_contract, read_contract

__all__ = [
    "DEFAULT_ALIGN",
    "METADATA_KEY",
    "Contract",
    "SegmentationClass",
    "any_contract",
    "contract_of_metadata",
    "parse_contract",
    "read_contract",
]
