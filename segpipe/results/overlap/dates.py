"""When a case was acquired: from its metadata, or from the name that its sensor's files have."""

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from segpipe.results.schema import Record

TAGS = re.compile(
    r"acqui|sensing|^datetime$|DATATAKE.*START|^(PRODUCT_)?START_?TIME$|DATE_?TIME_?ORIGINAL$|TIME_COVERAGE_START$"
    r"|^FIRSTLINETIME$",
    re.IGNORECASE,
)
"""Metadata that say when the sensor saw the scene."""

CREATED = re.compile(r"TIFFTAG_DATETIME$|EXIF_DateTime$", re.IGNORECASE)
"""When a file was made: the time of acquisition for some sensors, such as Planet's, of processing for others."""

STAMPS = (
    (re.compile(r"(?<!\d)(\d{8}T\d{6})(?!\d)"), "%Y%m%dT%H%M%S"),  # Sentinel-1, -2, -3
    (re.compile(r"(?<!\d)(\d{7}T\d{6})(?!\d)"), "%Y%jT%H%M%S"),  # HLS
    (re.compile(r"(?<![A-Z0-9])L[COTEM]0\d_[A-Z0-9]{4}_\d{6}_(\d{8})_"), "%Y%m%d"),  # Landsat Collection 1 and 2
    (re.compile(r"(?<![A-Z0-9])L[COTEM]\d\d{6}(\d{7})[A-Z]{3}\d\d"), "%Y%j"),  # Landsat before collections
    (re.compile(r"(?<!\d)(\d{8}_\d{6})(?=_|\.|$)"), "%Y%m%d_%H%M%S"),  # Planet
    (re.compile(r"(?<!\d)(\d{4}-\d{2}-\d{2})(?!\d)"), "%Y-%m-%d"),
    (re.compile(r"(?<!\d)((?:19|20)\d{6})(?!\d)"), "%Y%m%d"),
)
"""Times in names of files, and how they are written; the first one of a name counts, as Sentinel's start of sensing."""

FORMS = ("%Y:%m:%d %H:%M:%S", "%Y-%m-%d %H:%M:%S", "%Y/%m/%d %H:%M:%S", "%Y%m%d", "%Y%m%dT%H%M%S", "%Y/%m/%d", "%Y:%m:%d")
"""Times in metadata, besides those of ISO 8601."""

EARLIEST = datetime(1960, 1, 1, tzinfo=UTC)
"""Before the first satellites, a number is no date."""


@dataclass(frozen=True, slots=True)
class Acquired:
    """When a case was acquired, and how that is known."""

    time: datetime
    """UTC; midnight if only the day is known."""
    source: str
    """``TAG of its metadata``, or ``its name``."""


def acquired(record: Record) -> Acquired | None:
    """When a case was acquired; None if unknown.

    In this order: metadata of the acquisition, a time in the name of the case or, else, in the path of its file, and the
    time at which the file was made.
    """
    tags = record.input.scene or {}
    return next((found for found in (*_of_tags(tags, TAGS), *_of_names(record), *_of_tags(tags, CREATED))), None)


def _of_tags(tags: Mapping[str, str], kind: re.Pattern[str]) -> Iterator[Acquired]:
    """Times of the tags of a kind, those with a time of day first."""
    found = [(key, time) for key in sorted(tags) if _is_of(key, kind) and (time := _parsed(tags[key])) is not None]
    for key, time in sorted(found, key=lambda one: not _has_clock(one[1])):
        yield Acquired(time, f"{key} of its metadata")


def _is_of(key: str, kind: re.Pattern[str]) -> bool:
    return kind.match(key) is not None if kind is CREATED else kind.search(key) is not None and not CREATED.match(key)


def _has_clock(time: datetime) -> bool:
    return (time.hour, time.minute, time.second) != (0, 0, 0)


def _of_names(record: Record) -> Iterator[Acquired]:
    """Times in the parts of the case's name, the last part first, then in those of its path."""
    for what, text in (("its name", record.case), ("the path of its file", record.input.path)):
        for part in reversed(text.split("/")):
            if (time := time_in(part)) is not None:
                yield Acquired(time, what)


def time_in(name: str) -> datetime | None:
    """The time in a file's name, in UTC; None if there is none.

    >>> time_in("S2A_MSIL2A_20230615T100031_N0509_R122_T33UXP_20230615T162101")
    datetime.datetime(2023, 6, 15, 10, 0, 31, tzinfo=datetime.timezone.utc)
    >>> time_in("LC08_L2SP_190025_20230615_20230622_02_T1").date().isoformat()
    '2023-06-15'
    >>> time_in("field-17")
    """
    for pattern, form in STAMPS:
        for text in pattern.findall(name):
            if (time := _read(text, form)) is not None:
                return time
    return None


def _parsed(text: str) -> datetime | None:
    """The time in a value of metadata."""
    text = text.strip()
    with suppress(ValueError, OverflowError):
        return _plausible(datetime.fromisoformat(text))
    return next((time for form in FORMS if (time := _read(text, form)) is not None), None)


def _read(text: str, form: str) -> datetime | None:
    try:
        return _plausible(datetime.strptime(text, form))
    except ValueError:
        return None


def _plausible(time: datetime) -> datetime | None:
    """A time in UTC, which is that of times without a zone; None before the first satellites."""
    universal = time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    return universal if universal >= EARLIEST else None
