"""Checks of a contract whose keys depend on each other. Each function raises ``ValueError`` with the rule and the value."""

import operator
from typing import TYPE_CHECKING

from segpipe.contract.inputs import check_inputs
from segpipe.contract.keys import MOST_CHANNELS, as_lists, duplicates, listed, pairs, per_channel

if TYPE_CHECKING:
    from segpipe.contract.contract import Contract

PER_CHANNEL = ("scale", "offset", "mean", "std", "clip", "window", "normalize", "statistics_over")
"""Keys that may have one value per channel."""


_KINDS = {"normalize": "word", "statistics_over": "word", "clip": "pair", "window": "pair"}


def check_contract(contract: "Contract") -> None:
    """Check a contract whose keys are valid, each by itself."""
    for key in PER_CHANNEL:
        _check_length(contract, key)
    _check_normalization(contract)
    _check_limits(contract)
    _check_ranges(contract)
    _check_statistics(contract)
    _check_neighbours(contract)
    _check_inputs(contract)
    _check_margin(contract)
    _check_spacing(contract)
    _check_axis_order(contract)
    _check_output_layout(contract)
    _check_task(contract)
    _check_classes(contract)
    _check_crop(contract)


def _check_length(contract: "Contract", key: str) -> None:
    value, one = getattr(contract, key), _KINDS.get(key, "number")
    if isinstance(value, list) and len(value) != contract.channel_count:
        raise ValueError(
            f"{key} must be one {one} or one per channel, got {len(value)} for {contract.channel_count} channels"
        )


def _check_normalization(contract: "Contract") -> None:
    fixed = "fixed" in contract.normalizations
    if fixed and (contract.mean is None or contract.std is None):
        raise ValueError('normalize = "fixed" needs mean and std, as the network was trained')
    if not fixed and not (contract.mean is None and contract.std is None):
        raise ValueError(
            f'mean and std are used by normalize = "fixed" only, got normalize = "{listed(contract.normalizations)}"'
        )
    if contract.scaling == "graph" and contract.pixel == "physical":
        raise ValueError(
            'scaling = "graph" hands pixels to the network as they are stored, and pixel = "physical" applies the tags '
            'of the file first: for a network that takes physical values, set scaling = "host" with normalize = "none"'
        )
    if any(s <= 0 for s in per_channel(contract.std, 1)):
        raise ValueError(f"std must be above 0, got {contract.std}")
    if 0 in contract.column("scale"):
        raise ValueError(f"scale must not be 0, got {contract.scale}")


def _check_limits(contract: "Contract") -> None:
    given = [key for key in ("clip", "window", "clip_percentiles") if getattr(contract, key) is not None]
    if len(given) > 1:
        raise ValueError(f"one of clip, window and clip_percentiles sets the limits, got {' and '.join(given)}")
    if any(low >= high for low, high in pairs(contract.clip)):
        raise ValueError(f"clip must be [low, high], got {as_lists(contract.clip)}")
    if any(width <= 0 for _, width in pairs(contract.window)):
        raise ValueError(f"window must be [centre, width] with a width above 0, got {as_lists(contract.window)}")
    if contract.window is not None and (limits := contract.limits) is not None and any(map(operator.ge, *limits)):
        raise ValueError(
            "window must be [centre, width] with a width that floats can add to the centre, got "
            f"{as_lists(contract.window)}: both limits would be the same number"
        )


def _check_percentiles(contract: "Contract", key: str) -> None:
    given = getattr(contract, key)
    if given is not None and not 0 <= given[0] < given[1] <= 100:
        raise ValueError(f"{key} must be [low, high] from 0 to 100, got {list(given)}")


def _check_ranges(contract: "Contract") -> None:
    _check_percentiles(contract, "clip_percentiles")
    _check_percentiles(contract, "range_percentiles")
    if contract.range_percentiles is not None and "minmax" not in contract.normalizations:
        raise ValueError(
            'range_percentiles is for normalize = "minmax", got normalize = '
            f'"{listed(contract.normalizations)}": leave it out, or set clip_percentiles'
        )
    if contract.range_percentiles is not None and contract.clip_percentiles is not None:
        raise ValueError(
            "one of clip_percentiles, which cuts pixels off, and range_percentiles, which keeps them, is the range of "
            "minmax, got both: leave one out"
        )


def _check_statistics(contract: "Contract") -> None:
    if (contract.epsilon or contract.statistics_of == "case") and not contract.is_measured:
        raise ValueError(
            'statistics_of and epsilon are for statistics of each case: normalize = "zscore" or "minmax", or '
            f'clip_percentiles, got normalize = "{listed(contract.normalizations)}": leave them out'
        )
    if contract.statistics_of == "case" and len(set(contract.normalizations)) > 1:
        raise ValueError(
            'statistics_of = "case" needs one normalize for all channels, got '
            f'"{listed(contract.normalizations)}": name one, or leave statistics_of out'
        )
    if any(contract.over_nonzero) and not contract.is_measured:
        raise ValueError(
            'statistics_over = "nonzero" is for statistics of each case: normalize = "zscore" or "minmax", or '
            f'clip_percentiles, got normalize = "{listed(contract.normalizations)}"'
        )
    if contract.scaling == "graph" and (contract.clip_percentiles is not None or any(contract.over_nonzero)):
        raise ValueError(
            'scaling = "graph" hands pixels to the network as they are stored, and clip_percentiles and statistics_over '
            'need statistics of the case: leave them out, or set scaling = "host"'
        )


def _check_neighbours(contract: "Contract") -> None:
    if contract.neighbours and contract.layout.is_volume:
        raise ValueError(
            f'neighbours is for a network of images, which gets a volume slice by slice, got layout = "{contract.layout}": '
            "leave it out"
        )
    if contract.input_channels > MOST_CHANNELS:
        raise ValueError(f"the network must take at most {MOST_CHANNELS} channels, got {contract.input_channels}")


def _check_inputs(contract: "Contract") -> None:
    if contract.inputs is None:
        return
    if contract.input is not None:
        raise ValueError(f'inputs names all inputs of the network, got input = "{contract.input}" as well: leave input out')
    if contract.neighbours:
        raise ValueError(
            f"neighbours is for a network of one input, got neighbours = {contract.neighbours} and inputs: leave one out"
        )
    check_inputs(contract.inputs, contract.channels, "DHW" if contract.layout.is_volume else "HW")


def _check_margin(contract: "Contract") -> None:
    if contract.margin is None:
        return
    for key in ("tile", "margin"):
        value = getattr(contract, key)
        if value is not None and len(value) not in (1, contract.ndim):
            raise ValueError(f"{key} must have one number or {contract.ndim}, one per spatial axis, got {value}")
    tile, margin = contract.axes("tile", contract.ndim), contract.axes("margin", contract.ndim)
    if tile and margin and any(t <= 2 * m for t, m in zip(tile, margin, strict=True)):
        raise ValueError(
            f"margin must leave a part of the tile that has scores: tile must be larger than twice the margin, got tile "
            f"{list(tile)} and margin {list(margin)}"
        )


def _check_spacing(contract: "Contract") -> None:
    if contract.spacing is not None and (len(contract.spacing) != contract.ndim or min(contract.spacing) <= 0):
        raise ValueError(f"spacing must be {contract.ndim} numbers above 0, one per spatial axis, got {contract.spacing}")


def _check_axis_order(contract: "Contract") -> None:
    if contract.axis_order is None:
        return
    if sorted(contract.axis_order) != [0, 1, 2]:
        raise ValueError(f"axis_order must have the axes 0, 1 and 2 of a volume, each once, got {contract.axis_order}")
    if contract.orientation is not None:
        raise ValueError(
            f'one of orientation and axis_order turns a volume, got "{contract.orientation}" and {contract.axis_order}: '
            "leave one out"
        )


def _check_output_layout(contract: "Contract") -> None:
    if contract.scores_layout.ndim != contract.ndim:
        raise ValueError(
            f'output_layout must have the spatial axes of layout, got output_layout = "{contract.output_layout}" and '
            f'layout = "{contract.layout}"'
        )


def _check_task(contract: "Contract") -> None:
    if contract.task == "multiclass" and contract.activation == "sigmoid":
        raise ValueError(
            'a multiclass model has activation "softmax" or "none"; independent sigmoids are task = "multilabel"'
        )
    if contract.task != "multiclass" and contract.activation == "softmax":
        raise ValueError(
            f'task = "{contract.task}" has activation "sigmoid" or "none", got "softmax": '
            'scores that compete are task = "multiclass"'
        )


def _check_classes(contract: "Contract") -> None:
    for what, values in (("ids", [c.id for c in contract.classes]), ("names", [c.name for c in contract.classes])):
        if len(set(values)) != len(values):
            raise ValueError(f"class {what} must differ, got more than once: {listed(duplicates(values))}")
    taken = sorted(c.channel for c in contract.classes)
    if contract.gives_labels:
        _check_label_values(contract, taken)
    elif contract.task != "binary" and taken != list(range(len(taken))):
        raise ValueError(
            f"output channels of the classes must be 0 to {len(taken) - 1}, each once, got {listed(taken)}: "
            "give each class its index in the model's output where that is not its id; for some of its outputs alone, "
            "segpipe export attach"
        )
    if contract.task == "binary" and (len(contract.classes) > 2 or max(c.id for c in contract.classes) != 1):
        raise ValueError("a binary model has classes 0 and 1, or 1 alone")
    if contract.task == "regions" and (contract.gives_labels or min(c.id for c in contract.classes) < 1):
        raise ValueError(
            'task = "regions" has a score and an id from 1 for each region, and 0 where there is none, got activation = '
            f'"{contract.activation}" and ids {listed([c.id for c in contract.classes])}: correct them'
        )
    if "nodata" in {c.name for c in contract.classes}:
        raise ValueError('no class may be called "nodata": the tables use that name for pixels that were not seen')


def _check_label_values(contract: "Contract", values: list[int]) -> None:
    """Check a contract of labels, whose classes are found by value, not by channel."""
    if contract.threshold != type(contract).model_fields["threshold"].default:
        raise ValueError(
            f'threshold is for scores, and activation = "labels" has none, got {contract.threshold}: leave it out'
        )
    if len(set(values)) != len(values):
        raise ValueError(
            f"label values of the classes, index or else id, must differ, got {listed(duplicates(values))} twice"
        )
    if contract.task == "multilabel" and values != list(range(len(values))):
        raise ValueError(
            f"output channels of the classes must be 0 to {len(values) - 1}, each once, got {listed(values)}: "
            "give each class its index in the model's output where that is not its id"
        )


def _check_crop(contract: "Contract") -> None:
    if contract.crop is None:
        return
    if contract.scaling == "graph":
        raise ValueError('crop needs pixels before they are scaled, got scaling = "graph" as well: leave crop out')
    if contract.task == "multiclass" and all(one.id for one in contract.classes):
        raise ValueError(
            "crop needs a class of id 0, the background, for pixels outside, and has none: add it, or leave crop out"
        )
