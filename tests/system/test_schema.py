"""Records of every schema: read back as they were written, beside those of the version before, and refused where damaged."""

import csv
import json
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from click.testing import CliRunner
from networks import pixelwise
from rasterio.transform import from_origin
from scenes import Silent

from segpipe import __version__
from segpipe.cli import main
from segpipe.jobs.case_states import CaseState
from segpipe.jobs.launch import carry_out
from segpipe.jobs.prepare import prepare
from segpipe.results.records import read_record, records
from segpipe.results.schema import SCHEMA, Amount, LaterSchemaError, Record, RecordedInput, RecordedModel, parse_record
from segpipe.results.tables import write_areas
from segpipe.results.totals import Totals
from segpipe.settings import load_settings
from segpipe.storage.documents import DocumentError
from segpipe.storage.folder import Folder

OLD = Path(__file__).parents[1] / "records"
"""As the version before this schema has written them, of the scenes below: commit bfcace8."""

ROW = {"class_id": 0, "class_name": "a", "pixels": 3, "area": 1.5, "unit": "ha", "share": 1.0}


def made(**changes) -> Record:
    """A record with a value in every field but the thumbnail's and the lesions'."""
    return replace(
        Record(
            case="sub/a",
            segpipe="9",
            input=RecordedInput(
                "/in/a.tif", (3, 4), ({"path": "/in/a.tif", "size": 5},), grid={"crs": "no CRS"}, scene={"DATE": "x"}
            ),
            model=RecordedModel("00ff", "m.onnx", "metadata of m.onnx"),
            settings={"tile": [8, 8], "nodata": None},
            confidence=True,
            outputs=("sub/a.tif", "sub/a.confidence.tif"),
            valid=Amount(3, 1.5, "ha"),
            statistics={"areas": [ROW]},
            verified=False,
            device={"device": "cpu", "batch": [1, 2]},
            windows=2,
            inferred=1,
            seconds=0.5,
            sizes={"sub/a.tif": 7},
            nodata=255,
            notes=("one",),
        ),
        **changes,
    )


VOLUME = RecordedInput(
    "/in/v.nii.gz",
    (5, 6, 7),
    ({"path": "/in/v.nii.gz", "size": 5, "mtime_ns": 3},),
    format="nifti",
    grid={
        "affine": [[0, 0, 1.5, -3], [0, 2, 0, 4], [3, 0, 0, 5]],
        "spacing": [3, 2, 1.5],
        "unit": "mm",
        "orientation": "SAR",
    },
)
VOLUME_ROW = {**ROW, "area": 27.0, "unit": "mm3", "ml": 0.027}

RECORDS = {
    "of a raster": made(),
    "without a scene": made(input=RecordedInput("/in/a.tif", (3, 4), ())),
    "of a name that is no UTF-8": made(case="\udcff", outputs=("\udcff.tif",)),
    "of a volume": made(input=VOLUME, valid=Amount(3, 27.0, "mm3"), statistics={"areas": [VOLUME_ROW]}),
    "with another statistic": made(statistics={"areas": [ROW], "zones": [{"zone": "north", "pixels": 2}]}),
    "with lesions": made(lesions={"classes": [1], "min_size": 5.0, "instances": False, "counts": []}),
    "with a thumbnail": made(thumbnail="sub/a.tif"),
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_is_read_back_equal(name, tmp_path):
    record, folder = RECORDS[name], Folder(tmp_path)
    folder.write_json("a.json", record.as_json())
    assert parse_record(folder.read("a.json")) == record
    assert folder.read("a.json").startswith(b'{\n  "case": ')  # by which it is known where it is cut


def test_the_json_has_what_is_known():
    values = made().as_json()
    assert (values["schema"], next(iter(values))) == (SCHEMA, "case")
    unknown = {"aoi", "thumbnail", "lesions", "time", "uids"}
    assert values.keys() == {field.name for field in fields(Record)} - unknown | {"schema"}
    assert "areas" not in values
    assert "scene" not in made(input=VOLUME).as_json()["input"]


def test_a_record_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        made().case = "b"  # type: ignore[misc]


@pytest.mark.parametrize("name", ["field", "picture"])
def test_a_record_of_schema_1_says_the_same_by_other_names(name):
    data = (OLD / f"{name}.1.json").read_bytes()
    before, record = json.loads(data), parse_record(data)
    unit = "px" if before["valid"]["hectares"] is None else "ha"
    assert record.valid == Amount(before["valid"]["pixels"], before["valid"]["hectares"], unit)
    assert record.input.grid == {"crs": before["input"]["crs"]}
    assert record.input.scene == before["input"].get("scene")
    assert (record.input.format, record.thumbnail) == ("raster", None)
    again = record.as_json()
    assert again.pop("statistics")["areas"] == before.pop("areas")
    moved = {"schema", "input", "valid"}
    assert {k: v for k, v in before.items() if k not in moved} == json.loads(
        json.dumps({k: v for k, v in again.items() if k not in moved})
    )


@pytest.mark.parametrize("schema", [0, -1, 10**30, True, "2", 2.0, None, [2]])
def test_another_schema_is_no_record(schema):
    with pytest.raises(DocumentError, match="its schema must be a number"):
        parse_record(json.dumps(made().as_json() | {"schema": schema}).encode())


@pytest.mark.parametrize(
    "key", ["case", "segpipe", "input", "model", "settings", "confidence", "outputs", "valid", "statistics"]
)
def test_without_one_of_these_nothing_is_known(key):
    values = made().as_json()
    del values[key]
    with pytest.raises(DocumentError, match=key):
        parse_record(json.dumps(values).encode())


@pytest.mark.parametrize("key", ["windows", "seconds", "notes", "nodata", "device"])
def test_what_no_decision_depends_on_may_be_absent_or_damaged(key):
    values = made().as_json()
    assert getattr(parse_record(json.dumps(values | {key: {"x": [None]}} | {"device": 3}).encode()), key) is None
    del values[key]
    assert getattr(parse_record(json.dumps(values).encode()), key) is None


# --- both in one output folder -----------------------------------------------------------------------------------------


@pytest.fixture
def scenes(tmp_path, monkeypatch):
    """The scenes whose old records are kept, and one more."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(1, 255, (3, 40, 50), dtype=np.uint8)
    pixels[:, :5, :7] = 0
    kind = {"count": 3, "height": 40, "width": 50, "dtype": "uint8"}
    placed = {"driver": "GTiff", "nodata": 0, "crs": "EPSG:32633", "transform": from_origin(500_000, 5_400_000, 10, 10)}
    (tmp_path / "in").mkdir()
    for name, options in {"field.tif": placed, "picture.png": {"driver": "PNG"}, "new.tif": placed}.items():
        with rasterio.open(f"in/{name}", "w", **kind, **options) as dataset:
            dataset.write(pixels)
            if name == "field.tif":
                dataset.update_tags(TIFFTAG_DATETIME="2024:05:01 10:20:30", SATELLITE="S2A")
    pixelwise(tmp_path / "m.onnx")


def prepared():
    flags = {"input": ("in",), "model": Path("m.onnx"), "output": "out", "executor": "serial", "device": "cpu"}
    flags |= {"confidence": True, "style": "qgis"}
    return prepare(load_settings(None, flags))


def age(name: str) -> None:
    """Put an old record in the place of a case's, of the file and model that are there now."""
    file = Path("out") / f"{name}.json"
    now, old = json.loads(file.read_text()), json.loads((OLD / f"{name}.1.json").read_text())
    kept = {key: now["input"][key] for key in ("path", "files")}
    file.write_text(
        json.dumps(old | {"input": old["input"] | kept, "model": old["model"] | {"sha256": now["model"]["sha256"]}})
    )


@pytest.fixture
def mixed(scenes):
    """An output folder with two records of schema 1 and one of schema 2; the bytes of its table before."""
    assert carry_out(prepared(), Silent()).states.count(CaseState.DONE) == 3
    before = Path("out/areas.csv").read_bytes()
    age("field")
    age("picture")
    return before


def test_old_records_are_taken_as_done_beside_new_ones(mixed, caplog):
    kept = {name: (Path("out") / f"{name}.json").read_bytes() for name in ("field", "picture", "new")}
    run = prepared()
    assert [case.name for case in run.plan.done] == ["field", "new", "picture"]
    assert [read_record(run.run.output, case).segpipe for case in run.cases] == ["0.1.0", __version__, "0.1.0"]
    summary = carry_out(run, Silent())
    assert (summary.skipped, summary.done, caplog.text) == (["field", "new", "picture"], [], "")
    assert json.loads(Path("out/run.json").read_text())["skipped"] == ["field", "new", "picture"]
    assert Path("out/areas.csv").read_bytes() == mixed
    assert {name: (Path("out") / f"{name}.json").read_bytes() for name in kept} == kept
    schemas = [json.loads(data).get("schema") for data in kept.values()]
    assert schemas == [None, None, SCHEMA]


def test_status_and_the_totals_count_both(mixed):
    ended = CliRunner().invoke(main, ["status", "out"])
    assert (ended.exit_code, "3 done, 0 failed, 0 missing" in ended.stdout) == (0, True), ended.output
    run = prepared()
    totals = {name: one.pixels for name, one in Totals.over(records(run.run.output, run.cases)).classes.items()}
    rows = list(csv.DictReader(Path("out/areas.csv").read_text().splitlines()))
    assert totals == {name: sum(int(r["pixels"]) for r in rows if r["class_name"] == name) for name in totals}
    assert sum(totals.values()) == 3 * 40 * 50


def test_the_masks_of_an_old_record_have_the_sizes_that_it_says(mixed):
    """What it vouches for has the same bytes today."""
    for name in ("field", "picture"):
        sizes = json.loads((OLD / f"{name}.1.json").read_text())["sizes"]
        assert {file: (Path("out") / file).stat().st_size for file in sizes} == sizes


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({"areas": None}, "is damaged"),
        ({"valid": {"pixels": 3}}, "is damaged"),
        ({"outputs": ["../field.tif"]}, "is damaged"),
        ({"schema": 2}, "is damaged"),
        ({"schema": 7}, "has schema 7, and this version of segpipe reads schemas up to 2"),
    ],
)
def test_an_old_record_that_is_damaged_or_a_later_one_is_made_again(damage, said, mixed, caplog):
    file = Path("out/field.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | damage))
    summary = carry_out(prepared(), Silent())
    assert (summary.done, summary.skipped) == (["field"], ["new", "picture"])
    assert f"warning: out/field.json {said}: its case is done again" in caplog.messages
    assert json.loads(file.read_text())["schema"] == SCHEMA
    assert Path("out/areas.csv").read_bytes() == mixed


def test_an_old_record_of_another_input_is_not_taken(mixed):
    with rasterio.open("in/field.tif", "r+") as dataset:
        dataset.update_tags(changed="yes")
    assert [case.name for case in prepared().plan.done] == ["new", "picture"]


def test_the_table_is_written_from_records_alone(mixed):
    """Neither input nor mask is there any more."""
    cases = prepared().cases
    for path in [*Path("in").iterdir(), *Path("out").glob("*.tif"), *Path("out").glob("*.png")]:
        path.unlink()
    write_areas(Folder(Path("out")), cases)
    assert Path("out/areas.csv").read_bytes() == mixed


def test_parse_raises_for_a_later_schema():
    with pytest.raises(LaterSchemaError):
        parse_record(json.dumps(made().as_json() | {"schema": SCHEMA + 1}).encode())
