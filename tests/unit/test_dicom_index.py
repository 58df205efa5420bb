"""Series are found in folders: grouped, divided, named, chosen, and what is no slice is counted."""

import errno
import os
from dataclasses import replace
from pathlib import Path

import dicoms
import numpy as np
import pydicom
import pytest
from dicoms import Each
from pydicom.uid import DeflatedExplicitVRLittleEndian
from unreadable import fail, fail_to_open

from segpipe.errors import InputError
from segpipe.formats.case import EVERY_CASE, CaseSelection
from segpipe.formats.cases import find_input
from segpipe.formats.dicom import index
from segpipe.formats.dicom.elements import NotDicomError
from segpipe.formats.dicom.header import read_header
from segpipe.formats.dicom.index import find
from segpipe.formats.dicom.names import cases_of, is_one, may_be
from segpipe.formats.dicom.series import pack, unpack
from segpipe.storage.retry import FIRST_WAIT


def found(*inputs, **choice):
    return find_input([str(text) for text in inputs], CaseSelection(**choice))


def names(*inputs, **choice):
    return [case.name for case in found(*inputs, **choice).cases]


@pytest.mark.parametrize(
    ("name", "may"),
    [
        ("IM0001", True),
        ("a.dcm", True),
        ("a.IMA", True),
        ("1.2.840.113619.4", True),
        ("a.tif", False),
        ("a.json", False),
        ("a.", True),
    ],
)
def test_what_may_be_dicom_by_its_name(name, may):
    assert may_be(name) is may


@pytest.mark.parametrize("suffix", ["", ".dcm", ".1"])
def test_a_folder_of_slices_is_one_case_whatever_their_suffix(tmp_path, suffix):
    dicoms.write(tmp_path / "in" / "anna" / "CT", suffix=suffix)
    (tmp_path / "in" / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "in" / "notes").write_text("no image")
    cases = found(tmp_path / "in")
    (case,) = cases.cases
    assert (case.name, case.path, case.format) == ("anna/CT", str(tmp_path / "in" / "anna" / "CT"), "dicom")
    series = unpack(case.index)
    assert (series.uid, series.modality, len(series.frames)) == (dicoms.uid(1), "CT", 6)
    assert series.instances == tuple(dicoms.uid(1, n) for n in range(1, 7))
    assert cases.left_out == {"without suffix": 1}
    assert not cases.refused


def test_the_index_names_no_patient(tmp_path):
    dicoms.write(tmp_path)
    (case,) = found(tmp_path).cases
    series = unpack(case.index)
    text = repr(series)
    assert (series.patient_id, series.patient_name) == ("", "")
    assert not any(word in text for word in (dicoms.PATIENT, "4711", "19700101", "20260101"))
    assert pack(unpack(case.index)) == case.index


def test_a_folder_given_itself_is_named_after_itself(tmp_path):
    dicoms.write(tmp_path / "CT")
    assert names(tmp_path / "CT") == ["CT"]


def test_series_of_one_folder_are_named_by_number_and_else_by_uid(tmp_path):
    dicoms.write(tmp_path / "a" / "x", series=3)
    for n, file in enumerate(sorted(dicoms.write(tmp_path / "b", series=4).iterdir())):
        file.rename(tmp_path / "a" / "x" / f"other{n}")
    assert names(tmp_path) == ["a/x/series-3", "a/x/series-4"]
    paths = [case.path for case in found(tmp_path).cases]
    assert paths == [f"{tmp_path}/a/x/{dicoms.uid(3)}", f"{tmp_path}/a/x/{dicoms.uid(4)}"]
    dicoms.write(tmp_path / "a" / "x", series=3)
    for n, file in enumerate(sorted(dicoms.write(tmp_path / "b", series=5, SeriesNumber=3).iterdir())):
        file.rename(tmp_path / "a" / "x" / f"third{n}")
    assert names(tmp_path / "a")[0] == f"x/{dicoms.uid(3)}"


def test_a_series_over_several_folders_is_one_case(tmp_path):
    dicoms.write(tmp_path / "S" / "1", dicoms.values()[:3], dicoms.positions(6)[:3])
    for n, file in enumerate(
        sorted(dicoms.write(tmp_path / "S" / "2", dicoms.values()[3:], dicoms.positions(6)[3:]).iterdir())
    ):
        data = pydicom.dcmread(file)
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = dicoms.uid(1, 50 + n)
        dicoms.save(data, file)
    (case,) = found(tmp_path).cases
    assert (case.name, len(unpack(case.index).frames)) == ("S", 6)


def test_scouts_and_objects_without_image_are_counted_and_dose_reports_too(tmp_path):
    dicoms.write(tmp_path / "CT")
    scout = dicoms.slice_of(dicoms.values()[0], (0, 0, 0), 1, series=2, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    dicoms.save(scout, tmp_path / "scout.dcm")
    for n, (modality, sop_class) in enumerate(
        [("SR", "1.2.840.10008.5.1.4.1.1.88.33"), ("SEG", "1.2.840.10008.5.1.4.1.1.66.4")]
    ):
        other = dicoms.header(1, 20 + n)
        other.Modality, other.SOPClassUID = modality, sop_class
        other.file_meta.MediaStorageSOPClassUID = sop_class
        dicoms.save(other, tmp_path / f"{modality}.dcm")
    capture = dicoms.header(1, 30)
    capture.SOPClassUID = capture.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    dicoms.put_pixels(capture, dicoms.values()[0])
    dicoms.save(capture, tmp_path / "dose.dcm")
    cases = found(tmp_path)
    assert [case.name for case in cases.cases] == ["CT"]
    assert cases.left_out == {
        "DICOM CT without position": 1,
        "DICOM SEG (no image)": 1,
        "DICOM SR (no image)": 1,
        "DICOM scouts": 1,
    }
    with pytest.raises(InputError, match="this one holds 1 DICOM scouts"):
        found(tmp_path / "scout.dcm")


def test_echoes_of_one_position_are_volumes_of_their_own(tmp_path):
    pixels, places = dicoms.values((4, 5, 6)), dicoms.positions(4)
    both = np.concatenate([pixels, pixels + 1])
    dicoms.write(tmp_path, both, np.concatenate([places, places]), modality="MR", EchoNumbers=Each([1] * 4 + [2] * 4))
    cases = found(tmp_path).cases
    assert [case.name.rpartition("-")[2] for case in cases] == ["echo1", "echo2"]
    assert [len(unpack(case.index).frames) for case in cases] == [4, 4]
    assert len({case.path for case in cases}) == 2


def test_times_are_told_apart_by_their_tag_and_not_without_one(tmp_path):
    pixels, places = dicoms.values((6, 5, 6)), np.repeat(dicoms.positions(2), 3, axis=0)
    dicoms.write(tmp_path / "t", pixels, places, TemporalPositionIdentifier=Each([1, 2, 10] * 2))
    labels = [unpack(case.index).label for case in found(tmp_path / "t").cases]
    assert labels == ["time1", "time2", "time3"]
    dicoms.write(tmp_path / "u", pixels, places)
    assert len(found(tmp_path / "u").cases) == 1


def test_planes_of_two_orientations_are_two_volumes_and_one_odd_slice_is_none(tmp_path):
    sagittal = [0.0, 1, 0, 0, 0, -1]
    places = np.concatenate([dicoms.positions(3), dicoms.positions(3, orientation=sagittal)])
    turns = Each([list(dicoms.AXIAL)] * 3 + [sagittal] * 3)
    dicoms.write(tmp_path / "a", dicoms.values(), places, ImageOrientationPatient=turns)
    assert [unpack(case.index).label for case in found(tmp_path / "a").cases] == ["axial", "sagittal"]
    odd = Each([list(dicoms.AXIAL)] * 5 + [sagittal])
    dicoms.write(tmp_path / "b", dicoms.values(), dicoms.positions(6), ImageOrientationPatient=odd)
    assert len(found(tmp_path / "b").cases) == 1


def test_a_multi_frame_file_is_a_case_and_several_times_in_it_are_several(tmp_path):
    pixels = dicoms.values((4, 5, 6))
    dicoms.enhanced(tmp_path / "one.dcm", pixels, dicoms.positions(4), [1, 1, 1, 1])
    twice = np.repeat(dicoms.positions(2), 2, axis=0)
    dicoms.enhanced(tmp_path / "two.dcm", pixels, twice, [1, 1, 1, 1], times=[1, 2, 1, 2])
    assert names(tmp_path) == ["one", "two-time1", "two-time2"]
    frames = [unpack(case.index).frames for case in found(tmp_path).cases]
    assert [[frame.number for frame in one] for one in frames] == [[0, 1, 2, 3], [0, 2], [1, 3]]


@pytest.mark.parametrize("total", [True, False])
def test_a_concatenation_is_one_case_and_a_lost_file_of_it_is_named(total, tmp_path):
    """Where no file says how many there are, the last number must be that of the last file."""
    dicoms.enhanced(tmp_path / "e.dcm", dicoms.values((6, 5, 6)), dicoms.positions(6), [1] * 6)
    paths = dicoms.concatenate(tmp_path / "e.dcm", [3, 2, 1], total=total)
    (case,) = found(tmp_path).cases
    series = unpack(case.index)
    assert [(frame.path, frame.number) for frame in series.frames] == [
        (str(path), n) for path, count in zip(paths, [3, 2, 1], strict=True) for n in range(count)
    ]
    assert series.unusable == ""
    paths[1].unlink()
    (case,) = found(tmp_path).cases
    assert "is one of 3 files of an image, and those with InConcatenationNumber 2 are missing" in unpack(case.index).unusable
    paths[2].unlink()
    (case,) = found(tmp_path).cases
    assert ("InConcatenationNumber 2, 3 are missing" in unpack(case.index).unusable) == total


@pytest.mark.parametrize(
    ("text", "kept"),
    [("thorax", ["a"]), ("*1mm*", ["a", "b"]), ("Thorax*", ["a"]), ("7", ["b"]), (dicoms.uid(1), ["a"]), ("mm tho", [])],
)
def test_series_are_chosen_by_description_number_or_uid(tmp_path, text, kept):
    dicoms.write(tmp_path / "a", SeriesDescription="Thorax 1mm", SeriesNumber=6)
    dicoms.write(tmp_path / "b", series=2, SeriesDescription="Abdomen 1mm", SeriesNumber=7)
    if not kept:
        with pytest.raises(InputError, match="2 DICOM series not chosen"):
            found(tmp_path, series=text)
        return
    cases = found(tmp_path, series=text)
    assert [case.name for case in cases.cases] == kept
    assert cases.left_out == ({"DICOM series not chosen": 1} if len(kept) == 1 else {})


@pytest.mark.parametrize("folder", ["a", "b", "c"])
def test_a_damaged_file_beside_a_chosen_series_is_an_error(tmp_path, folder):
    """It may be the last slice, which no audit misses; elsewhere it is left out as other series are."""
    dicoms.write(tmp_path / "a", SeriesDescription="Thorax")
    dicoms.write(tmp_path / "b", series=2, SeriesDescription="Abdomen")
    (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / folder / "last.dcm").write_bytes(bytes(200))
    cases = found(tmp_path, series="thorax")
    assert [case.name for case in cases.cases] == ["a"]
    assert [failure.case.name for failure in cases.refused] == (["a/last"] if folder == "a" else [])
    assert cases.left_out.get("damaged DICOM files") == (None if folder == "a" else 1)


def test_a_slice_that_ends_within_its_header_is_no_object_without_image(tmp_path):
    """A copy that was interrupted would be left out of the volume as a report is."""
    dicoms.write(tmp_path / "CT")
    last = max((tmp_path / "CT").iterdir())
    whole = last.read_bytes()
    for size in range(200, whole.index(b"\xe0\x7f\x10\x00"), 37):
        last.write_bytes(whole[:size])
        cases = found(tmp_path)
        bad = [failure.case.name for failure in cases.refused] or [
            case.name for case in cases.cases if unpack(case.index).unusable
        ]
        assert bad, size
        assert not cases.left_out, size


def test_names_of_cases_without_folders(tmp_path):
    dicoms.write(tmp_path / "Mustermann" / "CT")
    dicoms.write(tmp_path / "Zorn" / "CT", series=2)
    assert names(tmp_path) == ["Mustermann/CT", "Zorn/CT"]
    assert names(tmp_path, names="number") == ["0001", "0002"]
    assert names(tmp_path, names="uid") == [dicoms.uid(1), dicoms.uid(2)]
    (tmp_path / "scan.nii").touch()
    refused = found(tmp_path, names="uid").refused
    assert [failure.case.name for failure in refused] == ["without-uid-0001"]
    assert "give --case-name number" in refused[0].error
    assert len(names(tmp_path, names="number")) == 3


def test_files_that_cannot_be_read_are_cases_that_fail(tmp_path):
    dicoms.write(tmp_path / "good")
    (tmp_path / "text.dcm").write_text("no image at all")
    (tmp_path / "cut.dcm").write_bytes((tmp_path / "good" / "IM0000.dcm").read_bytes()[:200])
    cases = found(tmp_path)
    assert [case.name for case in cases.cases] == ["good"]
    assert {failure.case.name for failure in cases.refused} == {"text", "cut"}
    assert "no DICM at byte 128" in str([failure.error for failure in cases.refused])
    with pytest.raises(NotDicomError, match="copy it again"):
        read_header(str(tmp_path / "text.dcm"), "text.dcm")


@pytest.mark.parametrize("how", ["glob", "list", "files"])
def test_slices_that_are_named_one_by_one_are_one_case(tmp_path, how, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dicoms.write(tmp_path / "CT", suffix="")
    files = [f"CT/{path.name}" for path in sorted((tmp_path / "CT").iterdir())]
    (tmp_path / "list.txt").write_text("\n".join(files))
    cases = found(*{"glob": ["CT/*"], "list": ["list.txt"], "files": files[:1]}[how]).cases
    assert [len(unpack(case.index).frames) for case in cases] == [1 if how == "files" else 6]


def test_a_series_in_several_inputs_is_one_case(tmp_path):
    files = sorted(dicoms.write(tmp_path / "CT").iterdir())
    (tmp_path / "cd2").mkdir()
    for path in files[3:]:
        path.rename(tmp_path / "cd2" / path.name)
    several = [tmp_path / "CT" / "*1.dcm", tmp_path / "CT", tmp_path / "cd2", tmp_path / "cd2" / files[4].name]
    (case,) = found(*several).cases
    assert (case.name, len(unpack(case.index).frames)) == ("CT", 6)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "README").touch()
    with pytest.raises(InputError, match=f"no raster or volume found in {tmp_path}/none: .* holds 1 without suffix"):
        found(*several, tmp_path / "none")


def test_no_header_is_read_where_no_file_is_dicom(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "find", lambda *_: pytest.fail("read"))
    (tmp_path / "README").write_text("no image")
    assert cases_of([("README", str(tmp_path / "README"))], EVERY_CASE).others == [str(tmp_path / "README")]
    assert not is_one(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("suffix", ["", ".dcm"])
def test_a_fault_of_each_file_that_passes_costs_no_series_and_one_wait(suffix, tmp_path, monkeypatch):
    dicoms.write(tmp_path / "CT", suffix=suffix)
    opened, seen, waits = Path.open, set(), []

    def open_later(path, *words, **options):
        if path not in seen:
            seen.add(path)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return opened(path, *words, **options)

    monkeypatch.setattr("segpipe.storage.retry.time.sleep", waits.append)
    monkeypatch.setattr(Path, "open", open_later)
    (case,) = found(tmp_path).cases
    assert (len(unpack(case.index).frames), unpack(case.index).unusable) == (6, "")
    assert len(seen) == 6
    assert waits == [FIRST_WAIT]


@pytest.mark.parametrize("suffix", ["", ".dcm"])
@pytest.mark.parametrize("how", [fail, fail_to_open])
def test_a_series_with_a_slice_that_cannot_be_read_is_not_a_shorter_volume(how, suffix, tmp_path, monkeypatch):
    dicoms.write(tmp_path / "CT", suffix=suffix)
    dicoms.write(tmp_path / "MR", suffix=suffix, SeriesInstanceUID=dicoms.uid(2))
    last = max((tmp_path / "CT").iterdir())
    how(monkeypatch, last)
    cases = found(tmp_path)
    assert ([case.name for case in cases.cases], cases.refused, cases.left_out) == (["CT", "MR"], [], {})
    one, other = (unpack(case.index) for case in cases.cases)
    why = f"{last} cannot be read, and may be a slice of a series: Input/output error: check the disk"
    assert (len(one.frames), one.unusable) == (5, why)
    assert (len(other.frames), other.unusable) == (6, "")


@pytest.mark.parametrize("suffix", ["", ".dcm"])
def test_a_file_that_cannot_be_read_and_may_be_dicom_fails_alone(suffix, tmp_path, monkeypatch):
    dicoms.write(tmp_path / "CT")
    (tmp_path / f"file{suffix}").touch()
    fail(monkeypatch, tmp_path / f"file{suffix}", "stat")
    cases = found(tmp_path)
    (failure,) = cases.refused
    assert [case.name for case in cases.cases] == ["CT"]
    assert (failure.case.name, failure.error) == (
        "file",
        f"{tmp_path}/file{suffix} cannot be read, and may be a slice of a series: Input/output error: check the disk",
    )


@pytest.mark.slow
def test_5000_slices_are_read_once_and_in_seconds(tmp_path, monkeypatch):
    first = dicoms.slice_of(np.zeros((4, 4), np.int16), (0, 0, 10_000), 10_000)
    written = dicoms.save(first, tmp_path / "IM10000").read_bytes()
    assert written.count(b"10000") == 4  # two UIDs, number and place: all that tells slices apart
    for n in range(10_001, 15_000):
        (tmp_path / f"IM{n}").write_bytes(written.replace(b"10000", b"%d" % n))
    read, there = [], pydicom.dcmread
    monkeypatch.setattr(pydicom, "dcmread", lambda *args, **more: read.append(1) or there(*args, **more))
    (case,) = found(tmp_path).cases
    assert len(read) == 5000
    assert len(unpack(case.index).frames) == 5000
    assert len(case.index) < 1_000_000


def test_one_case_of_find_alone(tmp_path):
    path = dicoms.write(tmp_path / "CT") / "IM0000.dcm"
    (case,) = find([("CT/IM0000.dcm", str(path))], EVERY_CASE).cases
    assert (case.name, Path(case.path)) == ("CT/IM0000", path)


@pytest.mark.timeout(120)
def test_pipes_are_not_opened(tmp_path):
    """A reader of a pipe, or of a terminal, would wait for ever."""
    for name in ("pipe", "pipe.dcm"):
        os.mkfifo(tmp_path / name)
        assert not is_one(str(tmp_path / name))
    found = cases_of([(name, str(tmp_path / name)) for name in ("pipe", "pipe.dcm")], EVERY_CASE)
    assert found.others == [str(tmp_path / "pipe")]
    (error,) = found.errors.values()
    assert error.startswith(f"{tmp_path}/pipe.dcm is no DICOM file")


@pytest.mark.parametrize("cut", [0, 30])
def test_a_file_that_is_packed_as_a_whole_is_named_before_it_is_unpacked(tmp_path, cut):
    dicoms.write(tmp_path / "good")
    data = dicoms.slice_of(dicoms.values((9, 11)), (0, 0, 0), 1, series=2)
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    path = dicoms.save(data, tmp_path / "packed.dcm")
    path.write_bytes(path.read_bytes()[: -cut or None])
    cases = found(tmp_path)
    assert [case.name for case in cases.cases] == ["good"]
    (failure,) = cases.refused
    assert failure.error == (
        f"{path}: its transfer syntax must not pack the whole file, got Deflated Explicit VR Little Endian: "
        f"unpack it first, as with dcmconv +te {path} out.dcm"
    )


def test_more_frames_than_any_series_has_take_no_memory(tmp_path):
    path = dicoms.save(dicoms.slice_of(dicoms.values((9, 11)), (0, 0, 0), 1, NumberOfFrames=2**31 - 1), tmp_path / "a.dcm")
    (failure,) = found(tmp_path).refused
    assert failure.error == f"{path}: NumberOfFrames must be at most 65,536, got 2,147,483,647: copy it again"


def test_relative_and_absolute_paths_of_one_series(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dicoms.write(tmp_path / "CT")
    (case,) = find([("0", "CT/IM0000.dcm"), ("1", str(tmp_path / "CT" / "IM0001.dcm"))], EVERY_CASE).cases
    assert case.path == str(tmp_path / "CT")


def test_a_slice_is_compared_with_a_bounded_number_of_orientations(monkeypatch):
    near, compared = index._is_near, []
    monkeypatch.setattr(index, "_is_near", lambda *pair: compared.append(1) or near(*pair))
    nowhere = ((float("nan"), 0.0, 0.0), (0.0, 1.0, 0.0))
    frames = [replace(dicoms.frame(n), directions=nowhere) for n in range(500)]
    assert index._by_orientation(frames) == [("", frames)]
    assert len(compared) <= index.MOST_ORIENTATIONS**2


def test_what_nobody_foresees_costs_only_its_series_or_its_format(tmp_path, monkeypatch):
    dicoms.write(tmp_path / "a")
    dicoms.write(tmp_path / "b", series=2)
    (tmp_path / "scan.nii").touch()
    volumes = index._volumes
    with monkeypatch.context() as patch:
        patch.setattr(index, "_volumes", lambda found: volumes(found) if found[0].series.number == "1" else 1 / 0)
        cases = found(tmp_path)
    assert [case.name for case in cases.cases] == ["a", "scan"]
    assert "b/IM0000.dcm failed in a way that segpipe does not know: ZeroDivisionError" in cases.refused[0].error
    monkeypatch.setattr(index, "find", lambda *_: 1 / 0)
    cases = found(tmp_path)
    assert [case.name for case in cases.cases] == ["scan"]
    assert "ZeroDivisionError" in cases.problems[0]
