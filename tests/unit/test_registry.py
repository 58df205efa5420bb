"""Formats: which files are cases of which, how one is opened, and what takes its mask."""

from contextlib import contextmanager

import pytest

from segpipe.errors import SourceError
from segpipe.formats.case import Case
from segpipe.formats.cases import find_input
from segpipe.formats.format import Format
from segpipe.formats.registry import FORMATS, RASTER, environment, format_of, open_case, split_suffix
from segpipe.formats.source import Source


def unused(*_args):
    raise AssertionError("not called here")


def volumes(**more) -> Format:
    does = {"open": unused, "sink": unused, "owns": unused} | more
    return Format("volumes", (".vol", ".vol.gz"), outputs=(".vol.gz",), **does)


@pytest.fixture
def _volumes(monkeypatch):
    monkeypatch.setitem(FORMATS, "volumes", volumes())


@pytest.mark.usefixtures("_volumes")
@pytest.mark.parametrize("how", ["folder", "glob", "list", "file"])
def test_cases_have_the_format_of_their_suffix_and_lose_all_of_it(how, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["T1.vol.gz", "T2.VOL", "b.tif", "c.d.VOL.GZ", "e.gz"]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "list.txt").write_text("\n".join(names[:-1]))
    inputs = {"folder": ["."], "glob": ["*"], "list": ["list.txt"], "file": names[:-1]}[how]
    found = find_input(inputs)
    expected = {"T1": "volumes", "T2": "volumes", "b": RASTER, "c.d": "volumes"}
    assert {case.name: case.format for case in found.cases} == expected
    assert sorted(case.path for case in found.cases) == sorted(names[:-1])
    assert found.left_out == ({".gz": 1, ".txt": 1} if how in ("folder", "glob") else {})


@pytest.mark.usefixtures("_volumes")
def test_what_lies_beside_a_case_of_two_suffixes_is_not_left_out(tmp_path):
    for name in ("T1.vol.gz", "T1.json", "T2.json"):
        (tmp_path / name).touch()
    assert find_input([str(tmp_path)]).left_out == {".json": 1}


@pytest.mark.usefixtures("_volumes")
def test_two_suffixes_of_one_stem_would_give_one_mask(tmp_path):
    for name in ("T1.vol", "T1.vol.gz", "T1.tif"):
        (tmp_path / name).touch()
    found = find_input([str(tmp_path)])
    assert not found.cases
    assert "3 inputs would get one name, T1" in found.refused[0].error


def test_a_file_of_no_format_is_a_raster_that_gdal_may_know():
    assert format_of("in/a.unknown") == format_of("in/a") == RASTER
    assert split_suffix("in/a.", {}) == ("in/a.", "")


def test_a_missing_extra_is_an_error_that_names_the_command(monkeypatch):
    def opened(*_args) -> Source:
        from nowhere_to_be_found import reader

        return reader

    monkeypatch.setitem(FORMATS, "volumes", volumes(open=opened, extra="medical"))
    told = r"^in/a\.vol: \.vol and \.vol\.gz files need nowhere_to_be_found, .*pip install .*medical\]"
    with pytest.raises(SourceError, match=told):
        open_case(Case("a", "in/a.vol", "volumes"), None)


def test_a_module_of_ours_that_is_missing_is_no_missing_extra(monkeypatch):
    def opened(*_args) -> Source:
        from segpipe.nothing import nothing

        return nothing

    monkeypatch.setitem(FORMATS, "volumes", volumes(open=opened, extra="medical"))
    with pytest.raises(ModuleNotFoundError):
        open_case(Case("a", "in/a.vol", "volumes"), None)


def test_a_thread_enters_what_every_format_needs(monkeypatch):
    seen = []

    @contextmanager
    def entered(threads):
        seen.append(threads)
        yield
        seen.append("left")

    monkeypatch.setitem(FORMATS, "volumes", volumes(environment=entered))
    with environment(3):
        assert seen == [3]
    assert seen == [3, "left"]


def test_a_case_is_a_raster_unless_it_says_otherwise():
    assert Case("a", "a.tif").format == RASTER
