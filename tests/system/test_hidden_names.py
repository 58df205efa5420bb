"""With ``--case-name number`` or ``uid``, nothing that a run writes or prints has a name from its inputs.

Folders, files and tags are named after a patient in several ways. All bytes of output, log and terminal are searched for it.
"""

import errno
import gzip
import json
import logging
import os
import re
import signal
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dicoms
import networks
import nibabel
import numpy as np
import pytest
import rasterio
from command import invoke
from scenes import Fork
from volumes import voxels, write

import segpipe
from segpipe.errors import SettingsError
from segpipe.formats.dicom import pixels as dicom_pixels
from segpipe.formats.redaction import hidden_inputs, names_of
from segpipe.jobs.lookup import paths_of
from segpipe.messages.redaction import HIDDEN, Redactor, path_digest, redacting, without_paths
from segpipe.settings import load_settings
from segpipe.storage import retry

PATIENT = "Zörnberg Hans^1957"
TAGS = {
    "PatientName": "Zornberg^Tag",
    "PatientID": "Zornberg-4711",
    "PatientComments": "of Zornberg",
    "InstitutionName": "Zornberg",
    "SeriesDescription": "Zornberg thorax",
    "StudyDescription": "Zornberg",
    "OperatorsName": "Zornberg",
    "AccessionNumber": "Zornberg",
    "ProtocolName": "Zornberg",
}
UMLAUT = rb"\xc3\xb6|\xc3\x96|%c3%b6|%c3%96|\\u00f6|\\u00d6|\\xf6|\\xd6|o\xcc\x88"
FOUND = re.compile(rb"z(?:o|" + UMLAUT + rb")rnberg|hans\^?1957|_hans\b", re.IGNORECASE)
MODEL = ["-m", "model.onnx", "--device", "cpu", "--seg", "none", "-o", "out", "--log-file", "run.log"]
SERIAL = [*MODEL, "--executor", "serial"]


def series(folder: Path, number: int, places: Any = None) -> None:
    """A series as a Siemens scanner exports it: names of files begin with that of the patient."""
    dicoms.write(folder, dicoms.values(seed=number), places, series=number, **TAGS)
    for n, path in enumerate(sorted(folder.iterdir())):
        path.rename(folder / f"ZÖRNBERG_HANS.CT.ABDOMEN.{n:04}.IMA")


def make(root: Path) -> None:
    """Cases that end in all the ways that cases of patients end."""
    patient = root / "scans" / PATIENT
    series(patient / "CT", 1)
    series(patient / "Zornberg missing", 2, np.delete(dicoms.positions(7), 3, axis=0))
    series(patient / "Zornberg tilted", 3, dicoms.positions(6) + np.arange(6)[:, None] * [0.2, 0, 0])
    series(patient / "Zornberg cut", 4)
    cut = sorted((patient / "Zornberg cut").iterdir())[2]
    cut.write_bytes(cut.read_bytes()[:-40])
    series(patient / "Zornberg odd", 5)
    odd = sorted((patient / "Zornberg odd").iterdir())[1]
    odd.write_bytes(odd.read_bytes().replace(b"-10\\-20\\", b"Zornberg"))  # pydicom quotes what is no number
    assert b"Zornberg32.5" in odd.read_bytes()
    (patient / "Zornberg.dcm").write_bytes(bytes(200))
    write(patient / "Zornberg brain.nii.gz", voxels(), descrip=b"Zornberg", db_name=b"Zornberg", aux_file=b"Zornberg")
    data = (patient / "Zornberg brain.nii.gz").read_bytes()
    (patient / "Zornberg damaged.nii.gz").write_bytes(data[: len(data) // 2])
    (patient / "Zornberg-empty.nii").write_bytes(b"")
    head = "NRRD0004\ncontent: Zornberg\n# of Zornberg\ntype: short\ndimension: 3\nsizes: 8 9 7\nspace: LPS\n"
    head += "space directions: (1,0,0) (0,1,0) (0,0,1)\nendian: little\nencoding: raw\nname:=Zornberg\n\n"
    (patient / "Zornberg.nrrd").write_bytes(head.encode() + voxels((8, 9, 7)).tobytes())
    (patient / "Zornberg-short.nrrd").write_bytes(head.encode() + b"\0" * 9)
    with rasterio.open(patient / "Zornberg.tif", "w", width=9, height=9, count=1, dtype="int16") as file:
        file.update_tags(PatientName="Zornberg", TIFFTAG_ARTIST="Zornberg")
        file.write(np.ones((1, 9, 9), np.int16))
    (patient / "Zornberg.png").write_bytes(b"no picture")
    (root / "scans" / "letter.zornberg").write_bytes(b"")
    (root / "scans" / "locked").mkdir()


def unpacked(data: bytes) -> Iterator[bytes]:
    yield data
    if data.startswith(b"\x1f\x8b"):
        yield gzip.decompress(data)
    if (at := data.find(b"encoding: gzip")) >= 0:
        yield zlib.decompress(data[data.index(b"\n\n", at) + 2 :], 31)


def leaks(root: Path, *texts: str) -> list[str]:
    """Where the patient is named in the output, the log, names of files and texts."""
    found = [
        f"terminal: {line}" for text in texts for line in text.splitlines() if FOUND.search(line.encode(errors="replace"))
    ]
    for path in (*root.glob("*.log"), *(path for out in root.glob("out*") for path in (out, *out.rglob("*")))):
        contents = (path.read_bytes(),) if path.is_file() else ()
        for data in (str(path.relative_to(root)).encode(), *(one for each in contents for one in unpacked(each))):
            found += [
                f"{path.relative_to(root)}: {data[max(0, m.start() - 60) : m.end() + 20]!r}" for m in FOUND.finditer(data)
            ]
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    networks.volumetric(tmp_path / "model.onnx", (2, 6, 8), scale=1 / 4096)
    make(tmp_path)
    monkeypatch.setattr(retry, "FIRST_WAIT", 0.001)
    listed = os.scandir

    def scandir(path: Any = ".") -> Any:  # root may read every folder
        if str(path).endswith("/locked"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    (tmp_path / "scans" / "locked").rename(tmp_path / "scans" / PATIENT / "locked")
    return tmp_path


def said(done: Any) -> tuple[str, str]:
    return done.stdout, done.stderr


@pytest.mark.parametrize("names", ["number", "uid"])
def test_what_a_run_writes_and_prints(folder: Path, names: str) -> None:
    plan = invoke(["run", "-i", "scans", *SERIAL, "--case-name", names, "--dry-run"], folder)
    assert plan.returncode == 1
    assert leaks(folder, *said(plan)) == []
    more = ["--profile", "--confidence", "--lesions", "--instances", "--style", "qgis"]
    done = invoke(["run", "-i", "scans", *SERIAL, "--case-name", names, *more], folder)
    assert done.returncode == 1
    assert leaks(folder, *said(done)) == []
    expected = 3 if names == "number" else 1
    assert f"{expected} done" in done.stdout
    assert "1 slice is missing" in done.stdout
    assert "slices must lie at right angles" in done.stdout
    assert "cannot be read, and its cases are left out: [path " in done.stderr
    again = invoke(["run", "-i", "scans", *SERIAL, "--case-name", names, *more], folder)
    assert f"0 done, {expected} done before" in again.stdout
    loud = invoke(["run", "-i", "scans", *SERIAL, "--case-name", names, "--overwrite", "-vv"], folder)
    status = invoke(["status", "out", "-i", "scans"], folder)
    assert f"{expected} done, " in status.stdout
    values = invoke(["status", "out", "--input", "scans", "--json"], folder)
    refused = invoke(["status", "out"], folder)
    assert refused.returncode == 2
    assert "hides the inputs of its run" in refused.stderr
    texts = [*said(again), *said(loud), *said(status), *said(values), *said(refused)]
    assert leaks(folder, *texts) == []
    if names == "number":
        mask = sorted(path.name for path in (folder / "out").glob("000*.nii.gz"))[0]
        assert leaks(folder, *said(invoke(["inspect", f"out/{mask}"], folder))) == []


@pytest.mark.parametrize(
    "inputs",
    [
        ["{here}/scans"],
        ["./scans/"],
        ["scans/*/*", "scans/*/CT/*.IMA"],
        [f"scans/{PATIENT}/CT", f"scans/{PATIENT}/Zornberg damaged.nii.gz", f"scans/{PATIENT}/Zornberg.tif"],
        ["list.txt"],
        ["link"],
    ],
)
def test_whatever_way_the_inputs_are_named(folder: Path, inputs: list[str]) -> None:
    patient = f"scans/{PATIENT}"
    lines = [f"{patient}/Zornberg brain.nii.gz", f"{patient}/Zornberg gone.nii.gz", f"{patient}/Zornberg damaged.nii.gz"]
    (folder / "list.txt").write_text("\n".join(lines), encoding="utf-8")
    (folder / "link").symlink_to(folder / patient)
    words = [word for text in inputs for word in ("-i", text.format(here=folder))]
    done = invoke(["run", *words, *SERIAL, "--case-name", "number", "--verbose"], folder)
    assert done.returncode == 1, done.stderr
    assert leaks(folder, *said(done)) == []
    status = invoke(["status", "out", *words], folder)
    assert re.search(r"^[123] done", status.stdout, re.MULTILINE)
    assert leaks(folder, *said(status)) == []


def test_an_input_that_is_the_current_folder(folder: Path) -> None:
    more = [word.replace("model.onnx", "../../model.onnx").replace("run.log", "../../run.log") for word in SERIAL]
    more[more.index("out")] = "../../out"
    done = invoke(["run", "-i", ".", *more, "--case-name", "number"], folder / "scans" / PATIENT)
    assert "3 done" in done.stdout
    assert leaks(folder, *said(done)) == []


def test_retries_and_errors_at_the_start(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, struck = dicom_pixels.Reader.read, set[str]()

    def fails_once(self: Any, path: str, number: int, *, alone: bool) -> Any:
        if path not in struck:
            struck.add(path)
            raise OSError(errno.EIO, "Input/output error", path)
        return read(self, path, number, alone=alone)

    monkeypatch.setattr(dicom_pixels.Reader, "read", fails_once)
    command = ["run", "-i", f"scans/{PATIENT}/CT", *SERIAL, "--case-name", "number", "--retries", "9"]
    done = invoke(command, folder)
    assert "1 done" in done.stdout
    assert "tried again in" in done.stderr
    assert '"event": "log"' in (folder / "run.log").read_text()
    texts = [*said(done)]
    for words in (
        ["-i", f"scans/{PATIENT}/Zornberg nowhere"],
        ["-i", f"scans/{PATIENT}/locked"],
        ["-i", "scans", "--channels", "a=*_Zornberg.nii"],
        ["-i", f"scans/{PATIENT}", "--fail-fast"],
        ["-i", "scans", "-o", f"scans/{PATIENT}/out"],
    ):
        ended = invoke(["run", *SERIAL, *words, "--case-name", "number"], folder)
        assert ended.returncode in (1, 2)
        if words[-1] != "a=*_Zornberg.nii" and words[0] != "-o" and "-o" not in words:  # these words are the user's own
            texts += said(ended)
    assert leaks(folder, *texts) == []


@pytest.mark.parametrize("place", ["segpipe.formats.dicom.pixels.Reader.read", "segpipe.results.output.check_unchanged"])
def test_unforeseen_errors_quote_no_values(folder: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise LookupError(
            f"ZÖRNBERG_HANS.CT.ABDOMEN.0001.IMA: the value 'Zornberg^Tag' of {folder}/scans/{PATIENT}/CT is odd"
        )

    monkeypatch.setattr(place, fails)
    done = invoke(["run", "-i", "scans", *SERIAL, "--case-name", "number", "-v"], folder)
    assert "failed in a way that segpipe does not know: LookupError" in done.stdout
    assert leaks(folder, *said(done)) == []


def test_logs_of_the_python_interface(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever calls segpipe.run may have handlers of their own."""
    read, struck = dicom_pixels.Reader.read, list[str]()

    def fails_once(self: Any, path: str, number: int, *, alone: bool) -> Any:
        if not struck:
            struck.append(path)
            raise OSError(errno.EIO, "Input/output error", path)
        return read(self, path, number, alone=alone)

    monkeypatch.setattr(dicom_pixels.Reader, "read", fails_once)
    monkeypatch.chdir(folder)
    factory = logging.getLogRecordFactory()
    with caplog.at_level("DEBUG"):
        result = segpipe.run("scans", "model.onnx", "out", case_name="number", executor="serial", device="cpu", seg="none")
        segpipe.run(
            "scans/*/Zornberg.tif", networks.pixelwise(folder / "p.onnx", 1), "out2", case_name="number", executor="serial"
        )
    assert logging.getLogRecordFactory() is factory
    assert "rasterio._base" in caplog.text
    assert "tried again in" in caplog.text
    assert sorted(result.done) == ["0001", "0002", "0006"]
    assert leaks(folder, caplog.text, *result.failed.values(), *result.problems) == []


def test_a_list_that_changes_between_runs_of_a_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for entry in ("elsewhere/a.nii", "elsewhere/Zornberg.nii", "elsewhere/Zornberg Hans"):
        Path("list.txt").write_text(f"{entry}\n")
        with pytest.raises(segpipe.InputError, match="the input must exist") as refused:
            segpipe.run("list.txt", "model.onnx", "out", case_name="number", executor="serial", device="cpu")
        assert leaks(folder, str(refused.value)) == []


def test_a_current_folder_that_changes_between_runs_of_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("Mustermann", "Zornberg"):
        (tmp_path / name).mkdir()
        with redacting(Redactor((".",))):
            assert name not in without_paths(f"{name}/x.dcm cannot be read")


def test_files_of_channels(tmp_path: Path) -> None:
    values = networks.contract(2, 3, layout="NCDHW", tile=[2, 6, 8], overlap=[0, 1, 2], scale=1 / 4096)
    networks.Network(2, 0, ndim=3).conv(2, 3, 1).save(tmp_path / "model.onnx", values, classes=3, shape=("n", 2, 6, 8))
    (tmp_path / "scans" / "Zornberg").mkdir(parents=True)
    for name in ("a/Zornberg_0000", "a/Zornberg_0001", "Zornberg/Zornberg_0000", "Zornberg/Zornberg-two_0001"):
        (tmp_path / "scans" / name).parent.mkdir(exist_ok=True)
        write(tmp_path / "scans" / f"{name}.nii.gz", voxels())
    done = invoke(["run", "-i", "scans", *SERIAL, "--case-name", "number"], tmp_path)
    assert "1 done, 0 done before, 2 failed" in done.stdout
    assert "channel 1 has no file" in done.stdout
    assert "0 done, 1 done before" in invoke(["run", "-i", "scans", *SERIAL, "--case-name", "number"], tmp_path).stdout
    names = invoke(["cases", "-i", "scans", "-m", "model.onnx", "--case-name", "number"], tmp_path)
    assert len(names.stdout.splitlines()) == 3
    assert leaks(tmp_path, *said(done)) == []


def test_workers_parts_and_kills(folder: Path) -> None:
    command = ["run", "-i", "scans", *MODEL, "--case-name", "number", "--parts", "2"]
    strike = ("segpipe.results.parts:write_tally:4", signal.SIGKILL)
    killed = Fork(folder, [*command, "--executor", "serial"], folder / "struck.log", [strike])
    assert killed.wait() == -signal.SIGKILL
    assert list((folder / "out/.parts").iterdir())
    assert leaks(folder) == []
    died = invoke(["status", "out", "-i", "scans"], folder)
    assert "its last run died" in died.stdout
    done = invoke([*command, "--workers", "2"], folder)
    assert done.returncode == 1
    assert leaks(folder, *said(died), *said(done)) == []


def test_hashes_can_be_looked_up(folder: Path) -> None:
    done = invoke(["run", "-i", "scans", *SERIAL, "--case-name", "number"], folder)
    names = invoke(["cases", "-i", "scans", "--case-name", "number"], folder)
    assert f"0001  scans/{PATIENT}/CT" in names.stdout.splitlines()
    hashes = {found[1] for found in HIDDEN.finditer(done.stdout + done.stderr)}
    record = json.loads((folder / "out/0001.json").read_text())
    hashes |= {record["input"]["path"], record["input"]["files"][0]["path"]}
    shown = invoke(["cases", *hashes, "-i", "scans"], folder)
    assert shown.returncode == 0, shown.stderr
    assert len(shown.stdout.splitlines()) >= len(hashes)
    missing = invoke(["cases", "0" * 12, "-i", "scans"], folder)
    assert missing.returncode == 1
    assert "stands for none" in missing.stderr
    with pytest.raises(SettingsError, match="a hash must have 12 digits as in a message, or those of a record, got Zorn"):
        paths_of(None, {"input": ("scans",)}, ["Zorn"])


def test_records_of_hidden_names_count_as_done_until_a_file_changes(folder: Path) -> None:
    command = ["run", "-i", f"scans/{PATIENT}/Zornberg brain.nii.gz", *SERIAL, "--case-name", "number"]
    assert "1 done" in invoke(command, folder).stdout
    assert "0 done, 1 done before" in invoke(command, folder).stdout
    source = folder / "scans" / PATIENT / "Zornberg brain.nii.gz"
    image = nibabel.load(source)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj)[::-1].copy(), image.affine, image.header), source)
    assert "1 done, 0 done before" in invoke(command, folder).stdout


def test_rasters_with_sidecars_count_as_done(tmp_path: Path) -> None:
    networks.Network(1).conv(1, 2, 1).save(
        tmp_path / "model.onnx", networks.contract(1, 2, tile=[8, 8], overlap=[0, 0]), classes=2
    )
    (tmp_path / "scans").mkdir()
    with rasterio.open(
        tmp_path / "scans/Zornberg.tif", "w", width=9, height=9, count=1, dtype="uint8", crs="EPSG:32633"
    ) as file:
        file.write(np.ones((1, 9, 9), np.uint8))
    (tmp_path / "scans/Zornberg.tfw").write_text("10\n0\n0\n-10\n500000\n5000000\n")
    command = ["run", "-i", "scans", "-m", "model.onnx", "--device", "cpu", "--executor", "serial", "--case-name", "number"]
    done = invoke([*command, "-o", "out"], tmp_path)
    assert "1 done" in done.stdout, done.stderr + done.stdout
    assert leaks(tmp_path, *said(done)) == []
    assert "0 done, 1 done before" in invoke([*command, "-o", "out"], tmp_path).stdout
    (tmp_path / "scans/Zornberg.tfw").unlink()
    assert "1 done, 0 done before" in invoke([*command, "-o", "out"], tmp_path).stdout


TEXTS = {
    "scans/Hans Zorn/1.dcm is cut": "{1} is cut",
    "'scans/Hans Zorn/1.dcm' is cut: copy it": "'{1}' is cut: copy it",
    "{here}/scans/Hans Zorn: no slices": "{0}: no slices",
    "file://{here}/scans/Hans%20Zorn/1.dcm?": "file://{1}?",
    "/vsigzip/{here}/scans/Hans Zorn/1.dcm": "/vsigzip/{1}",
    "scans/Hans Zo": "{cut}",
    "masks/scans/x and out/0001.tif": "masks/scans/x and out/0001.tif",
    "scans/out/0001.tif is full": "scans/out/0001.tif is full",
    "within scans, and scans2/x": "within scans, and scans2/x",
}


@pytest.mark.parametrize("text", TEXTS)
def test_paths_are_found_in_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (tmp_path / "scans" / "Hans Zorn").mkdir(parents=True)
    (tmp_path / "scans" / "Hans Zorn" / "1.dcm").touch()
    monkeypatch.chdir(tmp_path)
    hashes = [f"[path {path_digest(path)}]" for path in ("scans/Hans Zorn", "scans/Hans Zorn/1.dcm", "scans/Hans Zo")]
    expected = TEXTS[text].format(*hashes, cut=hashes[2])
    redactor = Redactor(("scans",), ("scans/out",))
    assert redactor.paths(text.format(here=tmp_path)) == expected
    assert redactor.message(expected) == expected


def test_names_alone_are_hidden_and_words_are_not(tmp_path: Path) -> None:
    redactor = Redactor(("scans",), (), ["Zorn.CT.0001.IMA", "series", "CT", "0003", "12345678"])
    text = redactor.message("series 3 of CT: Zorn.CT.0001.IMA, 0003, 12345678, Zorn.CT.0001.IMA2")
    assert re.fullmatch(r"series 3 of CT: \[name \w+\], 0003, \[name \w+\], Zorn.CT.0001.IMA2", text)


def test_nothing_is_hidden_of_cases_named_after_paths(tmp_path: Path) -> None:
    settings = load_settings(None, {"input": ("scans",), "model": (tmp_path / "m.onnx",)})
    with hidden_inputs(settings):
        assert without_paths("scans/a.dcm") == "scans/a.dcm"
    assert list(names_of([], ["scans"])) == ["scans", "scans"]
    with redacting(None):
        assert without_paths("scans/a.dcm") == "scans/a.dcm"
