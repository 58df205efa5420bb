"""The contract of a trained folder."""

from collections.abc import Mapping
from typing import Any

from segpipe.contract import Contract, parse_contract
from segpipe.errors import ExportError
from segpipe.export.nnunet.folder import TrainedFolder
from segpipe.export.nnunet.labels import label_terms
from segpipe.export.nnunet.normalization import scaling_terms
from segpipe.export.nnunet.plans import Configuration

PICTURES = (".png", ".bmp", ".tif", ".tiff", ".jpg", ".jpeg")
"""Endings of files that ``NaturalImage2DIO`` reads: pictures, whose spacing is no size on the ground."""

REORIENTED = "SAR"
"""Axes of a volume that ``NibabelIOWithReorient`` has turned to RAS, slowest first."""


def contract_of(folder: TrainedFolder, configuration: Configuration, flips: list[int]) -> Contract:
    """What a run needs to know of the network.

    Args:
        folder: the trained folder.
        configuration: of its plans.
        flips: spatial axes that nnU-Net mirrors at inference.

    Raises:
        ExportError: the folder contradicts itself, or needs what a contract cannot say.
    """
    channels = channel_names(folder.dataset)
    if len(channels) != len(configuration.schemes):
        raise ExportError(
            f"dataset.json and plans.json must have the same channels, got {len(channels)} ({', '.join(channels)}) and "
            f"{len(configuration.schemes)} normalization_schemes: take both from one folder"
        )
    values: dict[str, Any] = {
        "version": 1,
        "channels": channels,
        **scaling_terms(configuration),
        **_axes(folder.dataset, configuration),
        "tile": list(configuration.patch),
        "overlap": [size // 2 for size in configuration.patch],
        "align": list(configuration.align),
        "equivariant": False,
        **label_terms(folder.dataset),
        "flips": flips,
        "crop": "nonzero",
        "provenance": _provenance(folder, configuration),
    }
    return parse_contract(values, f"the contract of {folder.path}")


def channel_names(dataset: Mapping[str, Any]) -> list[str]:
    """Names of the channels, in order of their numbers; a name that occurs twice gets its number.

    Raises:
        ExportError: there are none.
    """
    named = dataset.get("channel_names", dataset.get("modality"))
    if not isinstance(named, dict) or sorted(map(str, named)) != sorted(map(str, range(len(named)))) or not named:
        raise ExportError('dataset.json must hold channel_names, as {"0": "CT"}, and does not: copy it again')
    names = [str(named[str(number)]) for number in range(len(named))]
    return [name if names.count(name) == 1 else f"{name} {number}" for number, name in enumerate(names)]


def _axes(dataset: Mapping[str, Any], configuration: Configuration) -> dict[str, Any]:
    """Layout, order of axes, spacing and the kind of values."""
    if str(dataset.get("file_ending", "")).lower() in PICTURES:
        return {"layout": "NCHW"}
    layout = {"layout": "NCDHW" if len(configuration.patch) == 3 else "NCHW"}
    return {
        **layout,
        **_order(configuration),
        "pixel": "physical",
        "spacing": list(configuration.spacing),
        "spacing_unit": "mm",
    }


def _order(configuration: Configuration) -> dict[str, Any]:
    """``orientation`` if nnU-Net turns volumes to RAS, else the order of the stored axes."""
    if configuration.reader == "NibabelIOWithReorient":
        return {"orientation": "".join(REORIENTED[axis] for axis in configuration.order)}
    return {"axis_order": list(configuration.order)} if configuration.order != (0, 1, 2) else {}


def _provenance(folder: TrainedFolder, configuration: Configuration) -> dict[str, Any]:
    named = {"dataset": folder.plans.get("dataset_name"), "plans": folder.plans.get("plans_name")}
    return {
        "nnunet": {
            **{key: str(value) for key, value in named.items() if value},
            "configuration": configuration.name,
            "reader": configuration.reader,
            **configuration.resampling,
        }
    }
