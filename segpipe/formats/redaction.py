"""What a run hides of its inputs if its cases are not named after their paths."""

import glob
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from traceback import format_tb
from typing import Any

from segpipe.errors import InputError, SegpipeError
from segpipe.formats.case import Case, without_path
from segpipe.formats.path_list import LIST_SUFFIXES, list_entries
from segpipe.formats.registry import FORMATS, by_suffix, split_suffix
from segpipe.formats.search import fixed_root
from segpipe.messages.redaction import HiddenNames, Redactor, is_redacting, redacting, state_of, without_names
from segpipe.settings import Settings
from segpipe.storage.existence import is_file

NUMBER = re.compile(r"_\d{4}$")
"""The number of a channel at the end of a name."""


def redactor_of(settings: Settings) -> Redactor | None:
    """The redactor of a run; None if its cases have the names of their paths."""
    if settings.case_name == "path":
        return None
    own = (settings.output, *settings.model, settings.contract, settings.log_file, settings.profile, settings.zones)
    keep = [str(path) for path in own if path and path is not True]
    roots = _all_roots(settings.input, os.getcwd(), tuple(map(state_of, settings.input)))  # noqa: PTH109
    return Redactor(roots, keep, _names(roots))


@lru_cache(4)
def _all_roots(inputs: tuple[str, ...], folder: str, states: tuple[object, ...]) -> tuple[str, ...]:
    """The inputs, and what the lists among them name, in the current folder; each task of a worker asks for them.

    Args:
        inputs: inputs as the user gave them.
        folder: the current folder, to which they are relative.
        states: their states: a later run of the process may find another list of the same name.
    """
    del folder, states
    return tuple(root for text in inputs for root in _roots(text))


def _roots(text: str) -> Iterator[str]:
    """An input, and the entries of a list."""
    yield text
    if glob.has_magic(text) and not os.path.lexists(text):
        yield str(fixed_root(text))
    if os.path.splitext(text)[1].lower() in LIST_SUFFIXES and is_file(text):  # noqa: PTH122
        folder = os.path.dirname(text)  # noqa: PTH120
        try:
            entries = list_entries(text)
        except InputError:  # the search says why
            return
        for entry in entries:
            yield entry
            yield os.path.join(folder, entry)  # noqa: PTH118


def _names(paths: Iterable[str]) -> Iterator[str]:
    """The names of files and folders on the way to them that a message may have alone."""
    known = by_suffix()
    for path in paths:
        name = os.path.basename(path.rstrip("/"))  # noqa: PTH119
        yield name
        yield split_suffix(name, known)[0]


def hide_case(text: str, case: Case) -> str:
    """A message about a case with its name in place of its path, and without other names of the inputs."""
    return without_names(without_path(text, case)) if is_redacting() else text


def names_of(cases: Iterable[Case], inputs: Sequence[str]) -> Iterator[str]:
    """All names below the inputs that lead to the files of cases: of folders, of files, and these without their ends."""
    known, seen = by_suffix(), set[str]()
    yield from _names(inputs)
    for case in cases:
        for path in (case.path, *FORMATS[case.format].files(case), *([] if case.mask is None else [case.mask])):
            folder, name = os.path.split(path)
            stem = split_suffix(name, known)[0]
            yield from {name, stem, os.path.splitext(name)[0], NUMBER.sub("", stem)}  # noqa: PTH122
            if folder not in seen:
                seen.add(folder)
                yield from _parts(folder, inputs)


def _parts(folder: str, inputs: Sequence[str]) -> list[str]:
    """The names of a folder and those above it that lie below an input, if one holds it."""
    fixed = (str(fixed_root(text)) if glob.has_magic(text) else text.rstrip("/") for text in inputs)
    below = [text for text in fixed if f"{folder}/".startswith(f"{text}/")]
    return folder[max(map(len, below), default=0) :].strip("/").split("/")


READERS = ("rasterio", "pydicom", "highdicom", "nibabel", "nrrd", "PIL", "tifffile", "imagecodecs", "pyogrio", "pyproj")
CARRIERS = ("boto3", "botocore", "s3transfer", "urllib3", "distributed", "dask", "tornado", "asyncio")
LIBRARIES = frozenset(("segpipe", *READERS, *CARRIERS, "onnxruntime", "openvino"))
"""Packages whose log records may name inputs, at some level; a program that calls ``segpipe.run`` may show them all."""


class _HidingFactory:
    """Makes log records; those of ``LIBRARIES`` without names of inputs, whatever loggers and handlers do with them."""

    def __init__(self, make: Callable[..., logging.LogRecord]) -> None:
        self._make = make

    def __call__(self, *values: Any, **named: Any) -> logging.LogRecord:
        record = self._make(*values, **named)
        if is_redacting() and str(record.name).partition(".")[0] in LIBRARIES:
            _hide(record)
        return record


@contextmanager
def hidden_inputs(settings: Settings, cases: Sequence[Case] = ()) -> Iterator[None]:
    """Hide the names of the inputs of a run while the block runs, in logs and in the error that ends it, too.

    Args:
        settings: settings of the run.
        cases: cases whose files are known already.
    """
    redactor = redactor_of(settings)
    if redactor is None:
        yield
        return
    redactor.names |= HiddenNames.of(names_of(cases, settings.input))
    if not isinstance(logging.getLogRecordFactory(), _HidingFactory):
        logging.setLogRecordFactory(_HidingFactory(logging.getLogRecordFactory()))
    with redacting(redactor):
        try:
            yield
        except SegpipeError as error:
            error.args = (without_names(str(error)),)
            raise


def _hide(record: logging.LogRecord) -> None:
    """Hide names in a record of a log, and what a library says about an error."""
    record.msg, record.args = without_names(record.getMessage()), ()
    if record.exc_info and record.exc_info[2] is not None:
        record.exc_text = without_names("".join(format_tb(record.exc_info[2]))).rstrip()
