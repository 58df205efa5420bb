"""Settings from flags and the configuration file: unknown keys, and keys that depend on each other."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from segpipe.errors import SettingsError
from segpipe.settings.settings import Settings
from segpipe.storage.documents import DocumentError, read_toml, shortened
from segpipe.storage.invalid import readable

FORMS = {
    "lesions": "true, false, or a list of names or ids of classes",
    "profile": "true, false or a path",
}
"""Keys whose value may have several forms, and which these are."""


NEEDS = {
    "min_size": "lesions",
    "instances": "lesions",
    "aoi_layer": "aoi",
    "zone_id": "zones",
    "zones_layer": "zones",
    "zones_out": "zones",
}
"""Keys that mean nothing without another one, and which that is."""


def load_settings(config: Path | None, flags: Mapping[str, Any], caller: str = "the command line") -> Settings:
    """Settings from a TOML file and flags; flags override the file.

    Raises:
        SettingsError: ``config`` or ``caller`` gave an unknown key, or a value does not fit.
    """
    values = {**(_read(config) if config else {}), **{k: v for k, v in flags.items() if not _is_absent(v)}}
    _check_keys(values, str(config or caller))
    for key, flag in (("input", "--input"), ("model", "--model")):
        if key not in values:
            raise SettingsError(f"{key} is needed: give {flag}, or {key} in the file of --config")
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        raise SettingsError(readable(error, FORMS)) from None
    _check_where_to_run(settings)
    _check_needed(settings)
    _check_report(settings)
    _check_bands(settings)
    _check_rule(settings)
    return settings


def _is_absent(value: Any) -> bool:
    return value is None or (isinstance(value, tuple) and not value)


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_toml(path)
    except DocumentError as error:
        raise SettingsError(f"the configuration {shortened(path)} {error}") from None


def _check_keys(values: Mapping[str, Any], origin: str) -> None:
    known = list(Settings.model_fields)
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            mend = f"did you mean {near[0]}?" if near else "known keys are " + ", ".join(known)
            raise SettingsError(f"{origin}: unknown key {shortened(key)}: {mend}")


def _check_where_to_run(settings: Settings) -> None:
    given = {"scheduler": settings.scheduler, "cluster": settings.cluster, "workers": settings.workers}
    named = [key for key, value in given.items() if value is not None]
    if len(named) > 1:
        raise SettingsError(f"one of scheduler, cluster and workers says where to run, got {' and '.join(named)}")
    if settings.executor == "serial" and (settings.scheduler or settings.cluster):
        raise SettingsError(f"{named[0]} needs the executor dask, got serial: leave --executor out")


def _check_needed(settings: Settings) -> None:
    for key, needed in NEEDS.items():
        if _is_given(settings, key) and not _is_given(settings, needed):
            flag = key.replace("_", "-")
            raise SettingsError(f"{key} needs {needed}: give --{needed}, too, or leave --{flag} out")


def _is_given(settings: Settings, key: str) -> bool:
    return bool(getattr(settings, key) != Settings.model_fields[key].default)


def _check_bands(settings: Settings) -> None:
    if settings.bands is not None and settings.bands_from is not None and "{band}" in settings.bands_from:
        raise SettingsError("bands_from finds bands by their names, and bands by their numbers, got both: leave --bands out")


def _check_report(settings: Settings) -> None:
    if settings.report is not None and settings.seg == "none":
        raise SettingsError("a report refers to the segments of a SEG, got report dicom and seg none: leave --seg none out")


def _check_rule(settings: Settings) -> None:
    if settings.overlap_rule == "confidence" and not settings.confidence:
        raise SettingsError(
            "overlap_rule confidence needs confidence: give --confidence, too, or leave --overlap-rule confidence out"
        )
