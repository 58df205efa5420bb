"""Times of acquisition: the names of the sensors' own files, tags of metadata, and which of them counts."""

from datetime import UTC, datetime

import pytest

from segpipe.results.overlap.dates import acquired, time_in
from segpipe.results.schema import Amount, Record, RecordedInput, RecordedModel

NAMES = {
    "S2A_MSIL2A_20230615T100031_N0509_R122_T33UXP_20230615T162101": "2023-06-15T10:00:31",
    "T33UXP_20230615T100031_B04_10m": "2023-06-15T10:00:31",
    "L2A_T33UXP_A041674_20230615T100559": "2023-06-15T10:05:59",
    "S1A_IW_GRDH_1SDV_20230615T050000_20230615T050025_048994": "2023-06-15T05:00:00",
    "LC08_L2SP_190025_20230615_20230622_02_T1": "2023-06-15T00:00:00",
    "LT05_L1TP_190025_19920815_20200914_02_T1_SR_B4": "1992-08-15T00:00:00",
    "LC81900252014166LGN00": "2014-06-15T00:00:00",
    "HLS.S30.T33UXP.2023166T100031.v2.0": "2023-06-15T10:00:31",
    "20230615_095012_24_2465_3B_AnalyticMS_SR": "2023-06-15T09:50:12",
    "20230615_095012_ssc1d1_0012": "2023-06-15T09:50:12",
    "north-2023-06-15": "2023-06-15T00:00:00",
    "field_20230615": "2023-06-15T00:00:00",
}
NONE = ["field-17", "12345678", "20231301", "plot_99999999T999999", "190025", "tile_00001234", "a19000101"]


@pytest.mark.parametrize(("name", "time"), NAMES.items())
def test_names_of_sensors(name: str, time: str) -> None:
    assert time_in(name) == datetime.fromisoformat(time).replace(tzinfo=UTC)


@pytest.mark.parametrize("name", NONE)
def test_other_numbers_are_no_dates(name: str) -> None:
    assert time_in(name) is None


def record(case: str, scene: dict[str, str] | None = None, path: str = "/in/scene.tif") -> Record:
    source = RecordedInput(path, (1, 1), (), scene=scene)
    return Record(case, "1", source, RecordedModel("0"), {}, False, (), Amount(0, 0.0, "ha"), {"areas": []})


def found(*arguments: object) -> tuple[str, str] | None:
    one = acquired(record(*arguments))  # type: ignore[arg-type]
    return None if one is None else (one.time.isoformat(), one.source)


def test_order_of_sources() -> None:
    """Metadata of the acquisition, the name, the path, and the time at which the file was made."""
    tags = {"TIFFTAG_DATETIME": "2023:07:01 12:00:00", "ACQUISITIONDATETIME": "2023-06-15T10:00:31Z"}
    name = "20230616T000000"
    assert found(name, tags) == ("2023-06-15T10:00:31+00:00", "ACQUISITIONDATETIME of its metadata")
    del tags["ACQUISITIONDATETIME"]
    assert found(name, tags) == ("2023-06-16T00:00:00+00:00", "its name")
    path = "/in/S2A_MSIL2A_20230615T100031.SAFE/B04.jp2"
    assert found("B04", tags, path) == ("2023-06-15T10:00:31+00:00", "the path of its file")
    assert found("a", tags) == ("2023-07-01T12:00:00+00:00", "TIFFTAG_DATETIME of its metadata")
    assert found("a") is None


def test_times_of_metadata_are_utc_and_the_most_exact_counts() -> None:
    tags = {"DATE_ACQUIRED": "2023-06-15", "acquired": "2023-06-15T12:00:31+02:00", "ACQUISITION_MODE": "normal"}
    assert found("a", tags) == ("2023-06-15T10:00:31+00:00", "acquired of its metadata")
    assert found("a", {"acquisition": "0001-01-01T00:00:00+14:00"}) is None
    assert found("a", {"PROCESSING_DATETIME": "2023-06-15", "GENERATION_TIME": "2023-06-15"}) is None


def test_the_last_part_of_a_name_counts_first() -> None:
    assert found("2021-01-01/2022-01-01/2023-01-01_x") == ("2023-01-01T00:00:00+00:00", "its name")
    assert found("2021-01-01/x") == ("2021-01-01T00:00:00+00:00", "its name")
