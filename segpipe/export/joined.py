"""Give a network of several inputs one: the stacked channels, of which each argument gets its own."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn

from segpipe.contract import Contract
from segpipe.contract.inputs import ModelInput, positions
from segpipe.errors import ExportError
from segpipe.export.families import Network
from segpipe.network.feeds import Feed

Parameters = Mapping[str, inspect.Parameter]

LISTED = 8
"""Most arguments that a message shows."""


class Joined(nn.Module):
    """A network whose arguments are cut out of one image ``(batch, channels, rows, cols)``, or constants."""

    def __init__(
        self, network: nn.Module, feeds: Mapping[str, Feed], values: Mapping[str, Any], order: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self._order = tuple(order)
        self.network, self._feeds, self._numbers = network, dict(feeds), {}
        for name, value in values.items():
            constant = torch.tensor(value)
            if constant.ndim:
                self.register_buffer(f"constant_{name}", constant, persistent=False)
            else:
                self._numbers[name] = value
        self._lists = [name for name in values if name not in self._numbers]

    def forward(self, image: Tensor) -> Any:
        """The network's own output; lists of numbers are those of one tile, and are repeated over the batch."""
        given = dict(self._numbers)
        for name, feed in self._feeds.items():
            given[name] = feed.picked(image).permute(feed.order)
        for name in self._lists:
            value = getattr(self, f"constant_{name}")
            given[name] = value.expand(image.shape[0], *value.shape)
        first = [given.pop(name) for name in self._order]
        return self.network(*first, **given)


def joined(network: Network, contract: Contract) -> tuple[Network, Contract]:
    """The network with one input, and the contract of that; both unchanged if the contract names no inputs.

    Raises:
        ExportError: the network's arguments are not those that the contract names.
    """
    takes = _arguments(network.module)
    if contract.inputs is None:
        _check_alone(takes, contract)
        return network, contract
    _check_names(takes, contract.inputs)
    feeds = {name: _feed(name, one, contract) for name, one in contract.inputs.items() if one.value is None}
    values = {name: one.value for name, one in contract.inputs.items() if one.value is not None}
    module = Joined(network.module, feeds, values, _leading(takes, contract.inputs))
    note = f"its inputs {', '.join(contract.inputs)} are cut out of one, which takes all {contract.channel_count} channels"
    return replace(network, module=module, notes=(*network.notes, note)), contract.model_copy(update={"inputs": None})


def _arguments(module: nn.Module) -> Parameters | None:
    """The arguments of a network; None if it does not say them."""
    if isinstance(module, torch.jit.ScriptModule):
        each = module.forward.schema.arguments[1:]  # type: ignore[attr-defined]
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        return {a.name: inspect.Parameter(a.name, kind, default=_default(a)) for a in each}
    try:
        return inspect.signature(module.forward).parameters
    except (TypeError, ValueError):  # implemented in C
        return None


def _leading(takes: Parameters | None, inputs: Mapping[str, ModelInput]) -> Sequence[str]:
    """The first arguments, which are given by position: programs take them in no other way."""
    if takes is None:
        return tuple(inputs)
    by_place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(takewhile(lambda name: name in inputs and takes[name].kind in by_place, takes))


def _default(argument: Any) -> Any:
    return argument.default_value if argument.has_default_value() else inspect.Parameter.empty


def _needed(takes: Parameters) -> list[str]:
    """Arguments without a default value."""
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [n for n, one in takes.items() if one.default is inspect.Parameter.empty and one.kind not in several]


def _check_alone(takes: Parameters | None, contract: Contract) -> None:
    """Refuse a network of several arguments if nothing says what each gets."""
    needed = [] if takes is None else _needed(takes)
    if len(needed) > 1:
        share = max(1, contract.channel_count // len(needed))
        lines = [f'inputs.{name} = {{ channels = "{k * share}:{(k + 1) * share}" }}' for k, name in enumerate(needed)]
        raise ExportError(
            f"the network takes {len(needed)} inputs, {', '.join(needed[:LISTED])}, and nothing says what each gets of the "
            f"{contract.channel_count} channels: add it to the file of --classes, such as\n" + "\n".join(lines[:LISTED])
        )


def _check_names(takes: Parameters | None, inputs: Mapping[str, ModelInput]) -> None:
    if takes is None or any(one.kind is inspect.Parameter.VAR_KEYWORD for one in takes.values()):
        return
    if unknown := [name for name in inputs if name not in takes]:
        raise ExportError(f"inputs must be arguments of the network, got {', '.join(unknown)}: it takes {', '.join(takes)}")
    if missing := [name for name in _needed(takes) if name not in inputs]:
        raise ExportError(
            f"each argument of the network needs channels or a value, and inputs does not name {', '.join(missing)}: add it"
        )


def _feed(name: str, given: ModelInput, contract: Contract) -> Feed:
    axes, own = given.axes or str(contract.layout), positions(name, given, contract.channels)
    if "T" in axes and given.dates is None:
        raise ExportError(f"the number of dates of the input {name} must be named: add dates to it, such as dates = 3")
    source = ("NTC" if "T" in axes else "NC") + "DHW"[-contract.ndim :]
    return Feed(name, "float32", own, given.dates, tuple(source.index(axis) for axis in axes))
