"""Which channels each file of a case holds, if a case has a file per date or per input of the network."""

import re
from collections.abc import Iterator, Mapping, Sequence

from segpipe.contract import Contract
from segpipe.contract.inputs import positions
from segpipe.errors import SettingsError

WORD = re.compile(r"\{(case|band|date|input)(?::([^{}:]+))?\}")
"""A word in braces, perhaps with the texts that it may stand for."""

DATE = r"\d{4}[-_.]?\d{2}[-_.]?\d{2}(?:T\d{4,6}Z?)?|\d{4}[-_.]?\d{2}|\d{7}|[tT]?\d{1,4}"
"""A day, a month, a day of a year, or a number."""

FileChannels = tuple[tuple[int, ...], ...]
"""Channels of the model in each file, in the order of the files."""


def listed_words(pattern: str, word: str) -> tuple[str, ...]:
    """The texts that a word of a pattern may stand for, in their order; none if it does not list them.

    >>> listed_words("{date:before,after}/{case}.png", "date")
    ('before', 'after')
    """
    found = next((match for match in WORD.finditer(pattern) if match[1] == word), None)
    return tuple(text.strip() for text in found[2].split(",")) if found and found[2] else ()


def channels_of_inputs(pattern: str, contract: Contract) -> tuple[tuple[str, ...], FileChannels]:
    """Names of files in place of ``{input}``, and the channels of each, in the contract's order.

    Raises:
        SettingsError: the contract has no inputs, or the pattern names others.
    """
    given = {n: one for n, one in (contract.inputs or {}).items() if one.value is None}
    if not given:
        raise SettingsError(
            "--bands-from with {input} needs inputs in the contract, got none: add them, or take {date} or {band}"
        )
    shares = dict(_untaken({name: positions(name, one, contract.channels) for name, one in given.items()}))
    names = listed_words(pattern, "input") or tuple(shares)
    if len(names) != len(shares):
        raise SettingsError(
            f"--bands-from must name a file for each of the inputs {', '.join(shares)}, got {{input:{','.join(names)}}}: "
            "name them in this order"
        )
    return names, tuple(shares.values())


def _untaken(shares: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the channels of each input that no input before it has."""
    taken: set[int] = set()
    for name, own in shares.items():
        if left := tuple(k for k in own if k not in taken):
            yield name, left
        taken.update(own)


def dates_of(contract: Contract) -> int | None:
    """The number of dates of a case by its contract; None if it does not say it.

    Raises:
        SettingsError: inputs have different numbers of dates.
    """
    given = [one for one in (contract.inputs or {}).values() if one.value is None]
    counts = {one.dates for one in given if one.axes is not None and "T" in one.axes}
    if not counts:
        return len(given) if len(given) > 1 else None
    if len(counts) > 1 or len(given) > 1:
        raise SettingsError(
            "--bands-from with {date} needs one input of dates, or an input for each date, got others in the contract: "
            "stack the bands of a case into one file"
        )
    return counts.pop()


def channels_of_dates(contract: Contract, count: int) -> FileChannels | None:
    """Channels of each date, in order; None if the channels are not as many for each."""
    given = {n: one for n, one in (contract.inputs or {}).items() if one.value is None}
    if len(given) > 1:
        each = tuple(positions(name, one, contract.channels) for name, one in given.items())
        return each if len(each) == count and len({len(own) for own in each}) == 1 else None
    own = next((positions(n, one, contract.channels) for n, one in given.items()), tuple(range(contract.channel_count)))
    if len(own) % count:
        return None
    size = len(own) // count
    return tuple(own[k * size : (k + 1) * size] for k in range(count))


def chronological(dates: Sequence[str]) -> list[str]:
    """Dates from the first to the last.

    >>> chronological(["t10", "t2"]), chronological(["2024-05", "2024-03"])
    (['t2', 't10'], ['2024-03', '2024-05'])

    Raises:
        ValueError: they are written in several forms, so that their order is not certain.
    """
    digits = {date: re.sub(r"\D", "", date) for date in dates}
    forms = {re.sub(r"\d", "0", date) if len(digits[date]) > LONGEST_NUMBER else "number" for date in dates}
    if len(forms) > 1:
        raise ValueError(f"dates must be written alike, got {', '.join(sorted(dates))}: rename the files")
    return sorted(dates, key=lambda date: int(digits[date]))


LONGEST_NUMBER = 4
"""Most digits of a number, or a year; more are a month or a day, whose places must be the same."""
