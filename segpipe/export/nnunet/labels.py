"""Labels and regions in ``dataset.json`` as the classes of a contract."""

from collections.abc import Mapping
from typing import Any

from segpipe.errors import ExportError

IGNORED = "ignore"
"""Name of the label of voxels without annotation; the network gives no score for it."""


def label_terms(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of the contract for labels, one score each, or for regions, which overlap.

    Regions overlap, in the order of the file. Their ids are the labels of ``regions_class_order``: nnU-Net, and a run,
    write the first region, then the second over it, and so on.

    Raises:
        ExportError: the labels are not as nnU-Net writes them.
    """
    labels = dataset.get("labels")
    if not isinstance(labels, dict) or not labels:
        raise ExportError("dataset.json must hold labels, a name and a number each, and does not: copy it again")
    named = {str(name): value for name, value in labels.items() if name != IGNORED}
    if any(isinstance(value, list) and len(value) > 1 for value in named.values()):
        return _regions(named, dataset.get("regions_class_order"))
    return _exclusive({name: _number(name, value) for name, value in named.items()})


def _number(name: str, value: Any) -> int:
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    if type(value) is not int or value < 0:
        raise ExportError(f"a label of dataset.json must be a number from 0, or a list of some, got {name}: {value!r}")
    return value


def _exclusive(labels: Mapping[str, int]) -> dict[str, Any]:
    if sorted(labels.values()) != list(range(len(labels))):
        raise ExportError(
            f"labels of dataset.json must be 0, 1, 2 and so on, each once, got {sorted(labels.values())}: nnU-Net trains no "
            "others, so correct the file to that of the training"
        )
    classes = sorted(({"id": value, "name": name} for name, value in labels.items()), key=lambda one: int(str(one["id"])))
    return {"task": "multiclass", "activation": "softmax", "classes": classes}


def _regions(labels: Mapping[str, Any], order: Any) -> dict[str, Any]:
    regions = [name for name, value in labels.items() if set(value if isinstance(value, list) else [value]) != {0}]
    if not isinstance(order, list) or len(order) != len(regions) or any(type(n) is not int for n in order):
        raise ExportError(
            f"regions_class_order of dataset.json must have a label for each of {', '.join(regions)}, got {order}: "
            "correct the file to that of the training"
        )
    if len(set(order)) < len(order) or min(order) < 1:
        raise ExportError(
            f"regions_class_order must have labels from 1, each once, to tell regions apart in a mask, got {order}"
        )
    classes = [
        {"id": label, "name": name, "index": index} for index, (name, label) in enumerate(zip(regions, order, strict=True))
    ]
    return {"task": "regions", "activation": "sigmoid", "classes": classes}
