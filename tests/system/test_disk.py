"""A disk that fills up: foreseen before the run, and after it nothing more is inferred until there is room."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import dicoms
import numpy as np
import pytest
from networks import local, pixelwise, volumetric
from rasterio.transform import from_origin
from scenes import PATIENCE, PROCESSES, SERIAL, Fork, Silent, mount, wait

from segpipe.errors import OutputError
from segpipe.formats.dicom.space import derived_space
from segpipe.formats.sink import Derived
from segpipe.jobs import disk, work
from segpipe.jobs.disk import Free, forecast, needed, shortages
from segpipe.jobs.launch import carry_out
from segpipe.jobs.prepare import prepare
from segpipe.settings import load_settings
from segpipe.storage.retry import unwritable
from segpipe.terminal.progress import print_conclusion
from segpipe.vectors.file import unwritten

NAMES = "abcdefgh"


def can_mount():
    return (
        subprocess.run(["unshare", "--map-root-user", "--mount", "true"], capture_output=True, check=False).returncode == 0
    )


mountable = pytest.mark.skipif(not can_mount(), reason="mount namespaces are not permitted here")


@pytest.fixture
def scenes(raster, tmp_path):
    """Eight cases of several tiles each, whose masks do not compress; and a model."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(NAMES):  # side by side, or they would share ground
        place = from_origin(500_000 + 3_000 * number, 5_400_000, 10, 10)
        raster(f"in/{name}.tif", rng.integers(1, 256, (3, 300, 300), dtype=np.uint8), transform=place)
    local(tmp_path / "m.onnx")
    return tmp_path


def settings(root, **flags):
    fixed = {"input": (str(root / "in"),), "model": root / "m.onnx", "output": root / "out", "device": "cpu"}
    return load_settings(None, fixed | {"executor": "serial"} | flags)


def masks(out):
    return {path.name: path.read_bytes() for path in out.glob("*.tif")}


@pytest.mark.slow
@mountable
@pytest.mark.parametrize("executor", [SERIAL, f"{PROCESSES} --parts 3"], ids=["serial", "processes in parts"])
def test_after_a_full_disk_nothing_is_inferred_and_with_room_the_rest_is_done(executor, scenes, mounts):
    """In a small tmpfs, which is made larger for the second run."""
    carry_out(prepare(settings(scenes, output=scenes / "whole")), Silent())
    disk, log = scenes / "disk", scenes / "log"
    disk.mkdir()
    seen, command = Path(f"/proc/{mounts}/root{disk}"), ["run", "-i", "in", "-m", "m.onnx", "-o", "disk", "--device", "cpu"]
    mount(mounts, f"mount -t tmpfs -o size=120k tmpfs {disk}")
    codes, said = [], []
    for size, copy in (("120k", "first"), ("64m", "out")):
        mount(mounts, f"mount -o remount,size={size} {disk}")
        codes.append(wait(Fork(scenes, [*command, *executor.split()], log, within=mounts, forked=1)))
        said.append(log.read_text())
        shutil.copytree(seen, scenes / copy)
    assert "Traceback" not in "".join(said)
    assert re.search(
        "error: the disk of disk is full: no further work was started: free .* and run the same command again", said[0]
    )
    assert codes == [1, 0], said
    told = json.loads((scenes / "first" / "run.json").read_text())
    assert len(told["failed"]) <= 4  # what two workers had at that moment; all others are not begun, or given up
    assert len(told["done"]) + len(told["failed"]) < len(NAMES)
    assert masks(scenes / "out") == masks(scenes / "whole")
    for name in told["done"]:
        assert (scenes / "first" / f"{name}.tif").read_bytes() == (scenes / "whole" / f"{name}.tif").read_bytes()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("at", ["a record", "a mask", "counts of a part"])
def test_nothing_is_inferred_once_something_cannot_be_written(number, at, scenes, monkeypatch):
    """Whatever it is that cannot be written first, and whatever the system says."""
    from segpipe.storage.folder import Folder

    suffix = {"a record": "c.json", "a mask": "c.tif", "counts of a part": "000001.npz"}[at]
    whole, failing = Folder.publish, []

    def broken(self, draft, name, *, flush=True):
        if (name.endswith(suffix) and "c" in name) or (failing and number == errno.EIO):  # a disk that fails goes on failing
            failing.append(name)
            raise OSError(number, os.strerror(number), name)
        whole(self, draft, name, flush=flush)

    monkeypatch.setattr(Folder, "publish", broken)
    calls = counted(monkeypatch)
    flags = {"parts": 3} if at == "counts of a part" else {}
    summary = carry_out(prepare(settings(scenes, retries=0, **flags)), Silent())
    assert len(summary.failed) == 1
    assert os.strerror(number) in summary.failed[0].error
    assert len(summary.done) <= 3
    assert len(calls) <= 4  # cases that were begun: a to c, and d beside the last of c
    words = "is full" if number == errno.ENOSPC else f"can no longer be written: {os.strerror(number)}"
    assert len(summary.problems) == (3 if number == errno.EIO else 1)  # its tables and its state, too
    assert words in summary.problems[0]
    assert "run the same command again" in summary.problems[0]
    monkeypatch.setattr(Folder, "publish", whole)
    again = carry_out(prepare(settings(scenes)), Silent())
    assert sorted(again.done + again.skipped) == list(NAMES)


@pytest.mark.parametrize(
    ("lost", "rest"), [("audit.csv", "areas in {out}/areas.csv\n"), ("areas.csv", "least sure windows in {out}/audit.csv\n")]
)
def test_a_table_that_could_not_be_written_is_not_said_to_be_there(lost, rest, scenes, monkeypatch, capsys):
    from segpipe.storage.folder import Folder

    whole = Folder.publish

    def broken(self, draft, name, *, flush=True):
        if name == lost:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
        whole(self, draft, name, flush=flush)

    monkeypatch.setattr(Folder, "publish", broken)
    prepared = prepare(settings(scenes, input=(str(scenes / "in" / "a.tif"),), audit=20))
    summary = carry_out(prepared, Silent())
    assert summary.problems == [f"{scenes}/out/{lost} cannot be written: No space left on device: free space there"]
    print_conclusion(prepared, summary)
    assert capsys.readouterr().out.splitlines(keepends=True)[-1].endswith(f" {rest.format(out=scenes / 'out')}")


VECTORS = """
import sys, geopandas, pathlib
from shapely import Point
from segpipe.errors import OutputError
from segpipe.vectors.file import writing_errors
frame = geopandas.GeoDataFrame({"a": range(9000)}, geometry=[Point(k, k) for k in range(9000)], crs=32633)
for suffix in sys.argv[1:]:
    path = pathlib.Path("disk", f"f.{suffix}")
    try:
        with writing_errors(path, "--output", OutputError):
            frame.to_parquet(path) if suffix == "parquet" else frame.to_file(path)
    except OutputError as error:
        print(error)
    path.unlink(missing_ok=True)
"""


@mountable
def test_a_vector_file_on_a_full_disk_says_that_it_is_full(tmp_path):
    """GDAL says that there is no such table, or that a feature cannot be written; in a tmpfs of 12 kB."""
    suffixes = ["gpkg", "fgb", "geojson", "parquet"]
    script = 'mkdir disk && mount -t tmpfs -o size=12k tmpfs disk && exec "$@"'
    inner = [sys.executable, "-c", VECTORS, *suffixes]
    outer = ["unshare", "--map-root-user", "--mount", "bash", "-c", script, "bash", *inner]
    done = subprocess.run(outer, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert [line.split(": ")[0] for line in done.stdout.splitlines()] == [
        f"--output disk/f.{suffix} cannot be written" for suffix in suffixes
    ], done.stderr
    assert all(line.endswith("No space left on device: free space there") for line in done.stdout.splitlines())


def test_an_error_on_a_disk_that_is_gone_keeps_its_words(tmp_path):
    """The folder was removed, or its disk taken away, while a file was written there."""
    assert unwritten(tmp_path / "gone" / "f.gpkg", ValueError("no such table")) == "no such table: name another file"


def counted(monkeypatch):
    """Names of the cases whose boxes were written."""
    begun = set()
    whole = work._write

    def segment(case, boxes, make_output, context):
        begun.add(case.name)
        return whole(case, boxes, make_output, context)

    monkeypatch.setattr(work, "_write", segment)
    return begun


def test_one_bad_sector_of_the_output_costs_its_case_alone(scenes, monkeypatch):
    from segpipe.storage.folder import Folder

    whole = Folder.read

    def damaged(self, name):
        if name in {"c.tif", "c.json"}:
            raise OSError(errno.EIO, os.strerror(errno.EIO), name)
        return whole(self, name)

    prepared = prepare(settings(scenes, retries=0))
    (scenes / "out").mkdir(exist_ok=True)
    (scenes / "out" / "c.json").write_text("{}")
    monkeypatch.setattr(Folder, "read", damaged)
    summary = carry_out(prepared, Silent())
    assert [failure.case.name for failure in summary.failed] == ["c"]
    assert sorted(summary.done) == [name for name in NAMES if name != "c"]
    assert list((scenes / "out").glob("*.probe")) == []


def test_a_look_that_fails_costs_no_forecast(prepared, monkeypatch):
    def unknown(*arguments, **options):
        raise UnicodeDecodeError("utf-8", b"", 0, 1, "what nobody foresaw")

    monkeypatch.setattr(disk, "open_checked", unknown)
    monkeypatch.setattr(disk.os, "statvfs", lambda folder: (_ for _ in ()).throw(OSError(errno.ESTALE, "stale")))
    plan = replace(prepared.plan, small=(), cuts=(), unopened=tuple(case.case for case in prepared.plan.opened))
    assert "free there: unknown" in forecast(plan, prepared.run)
    assert list(shortages(plan, prepared.run)) == []
    assert "is full" in disk.stopped(plan, prepared.run, 1.0, os.strerror(errno.ENOSPC))


def test_a_disk_without_room_for_files_is_told_as_that(prepared, monkeypatch):
    monkeypatch.setattr(disk, "free_at", lambda folder: Free(10**12, 3))
    assert "holds no more files" in disk.stopped(prepared.plan, prepared.run, 1.0, os.strerror(errno.ENOSPC))


def test_an_input_output_error_of_an_input_stops_nothing_else():
    error = OSError(errno.EIO, "Input/output error")
    assert unwritable(error, writing=False) is None
    assert unwritable(error, writing=True) == "Input/output error"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_what_gdal_says_of_a_disk_is_understood(number):
    said = OutputError(f"out/a.tif cannot be written: _tiffWriteProc:{os.strerror(number)}.")
    assert unwritable(said, writing=True) == os.strerror(number)
    assert unwritable(OutputError("out/a.tif cannot be written: not a codec"), writing=True) is None


@pytest.fixture
def prepared(raster, tmp_path):
    raster("in/a.tif", np.ones((3, 1500, 2000), np.uint8))
    pixelwise(tmp_path / "m.onnx", tile=[512, 512], overlap=[64, 64])
    return prepare(settings(tmp_path))


def test_a_forecast_has_what_is_needed_and_what_is_free(prepared, monkeypatch):
    monkeypatch.setattr(disk, "free_at", lambda folder: Free(10**12, 5000))
    line = forecast(prepared.plan, prepared.run)
    assert "free there: 1,000.0 GB, 5,000 files; quotas are not seen" in line
    assert list(shortages(prepared.plan, prepared.run)) == []
    want = needed(prepared.plan, prepared.run)
    assert want.passing < want.likely < want.most
    assert want.most >= 1500 * 2000 * 4 / 3


def test_a_mask_never_takes_more_than_the_most(scenes):
    prepared = prepare(settings(scenes, confidence=True))
    want = needed(prepared.plan, prepared.run)
    carry_out(prepared, Silent())
    files = [path for path in (scenes / "out").rglob("*") if path.is_file() and path.stem not in ("run", "areas")]
    assert sum(path.stat().st_size for path in files) <= want.most
    assert len(files) <= want.files


@pytest.mark.parametrize(
    ("free", "words"),
    [
        (Free(10**5, None), "are free: free .* or name another --output"),
        (Free(10**12, 2), "leaves 3 files, and .* can hold only 2"),
    ],
)
def test_a_disk_that_is_likely_too_full_is_warned_of(free, words, prepared, monkeypatch):
    monkeypatch.setattr(disk, "free_at", lambda folder: free)
    (line,) = shortages(prepared.plan, prepared.run)
    assert line.startswith("warning: ")
    assert re.search(words, line)


def test_cases_that_nobody_has_looked_at_are_foreseen_by_some(scenes, monkeypatch):
    before = needed((seen := prepare(settings(scenes))).plan, seen.run)
    monkeypatch.setattr("segpipe.jobs.planning.MOST_OPENED", 3)
    unseen = prepare(settings(scenes))
    assert len(unseen.plan.unopened) == len(NAMES)
    assert needed(unseen.plan, unseen.run).most == pytest.approx(before.most)


@pytest.mark.parametrize("more", [{}, {"parts": 3, "confidence": True}, {"seg": "labelmap"}, {"seg": "none"}])
def test_instances_and_segmentations_are_foreseen(more, tmp_path):
    """Of noise, which compresses worst."""
    volumetric(tmp_path / "m.onnx", (8, 12, 10), 5, scale=1 / 4096)
    dicoms.write(tmp_path / "in" / "CT", dicoms.values((16, 30, 40)))
    prepared = prepare(settings(tmp_path, lesions=True, instances=True, **more))
    want = needed(prepared.plan, prepared.run)
    carry_out(prepared, Silent())
    files = [path for path in (tmp_path / "out").rglob("CT*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= want.most
    assert len(files) == want.files - 1  # a sidecar that only rasters have
    seg = tmp_path / "out" / "CT.seg.dcm"
    without = needed(prepared.plan, replace(prepared.run, settings=prepared.run.settings.model_copy(update={"seg": "none"})))
    if more.get("seg") == "none":
        assert without == want
    else:
        assert seg.stat().st_size <= want.most - without.most + 300_000  # its header, with a reference to each slice
        assert without.files == want.files - 1


@pytest.mark.parametrize(
    ("derived", "usual", "worst"),
    [(Derived("binary"), 69e6, 299e6), (Derived("labelmap"), 1.9e6, 1.9e6), (Derived("binary", True), 94e6, 324e6)],
)
def test_space_of_dicom_files_is_that_of_the_measured_ones(derived, usual, worst):
    """30 classes in 300 planes of 512 x 512: docs/decisions/dicom-outputs.md."""
    space = derived_space(derived, 30, 300 * 512 * 512)
    assert space.likely == pytest.approx(usual, rel=0.3)
    assert space.most > 0.98 * worst
    assert space.files == (3 if derived.report else 1)
