"""Rasters of one band each become scenes by a pattern of the user."""

from pathlib import Path

import pytest
from networks import contract

from segpipe.contract import parse_contract
from segpipe.errors import InputError, SettingsError
from segpipe.formats.banded import bands_from, group
from segpipe.formats.case import BandsFrom, Case, CaseSelection
from segpipe.formats.cases import find_input
from segpipe.settings import load_settings

NAMELESS = parse_contract(contract(3, 3), "c.toml")
NAMES = ("B04", "B8A", "red")


def grouped(pattern: str, *files: str, names: tuple[str, ...] = NAMES) -> dict[str, list[str]]:
    cases = [Case(str(Path(file).with_suffix("")), f"/in/{file}") for file in files]
    found = group(cases, BandsFrom(pattern, names))
    return {case.name: [Path(path).relative_to("/in").as_posix() for path in case.index.files] for case in found.cases}


def test_files_in_the_order_of_the_channels_whatever_their_spelling():
    files = ["s/a_1_red.tif", "s/a_1_B4.tif", "s/a_1_b8a.tif", "s/a_1_B05.tif", "a_1_RED.tif"]
    assert grouped("{case}_{band}.tif", *files) == {
        "s/a_1": ["s/a_1_B4.tif", "s/a_1_b8a.tif", "s/a_1_red.tif"],
        "a_1": ["a_1_RED.tif"],
    }


def test_folders_and_other_text_in_a_pattern():
    files = ["x/T1/R10m/T1_2024_B04_10m.jp2", "x/T1/R10m/T1_2024_red_10m.jp2", "x/T2/R10m/T3_2024_B04_10m.jp2"]
    assert grouped("{case}/R10m/{case}_*_{band}_10m.jp2", *files) == {"x/T1": files[:2]}
    assert grouped("{case}.{band}.tif", "a.b.B04.tif") == {"a.b": ["a.b.B04.tif"]}


def test_a_band_that_is_missing_or_there_twice(tmp_path):
    for name in ("a_B04.tif", "a_B4.tif", "b_B04.tif", "c.tif", "d.nii"):
        (tmp_path / name).touch()
    found = find_input([str(tmp_path)], CaseSelection(bands=BandsFrom("{case}_{band}.tif", ("B04", "B08"))))
    assert {failure.case.name: failure.error for failure in found.refused} == {
        "a": "a: B04 must have one file like a_B04.tif, got a_B04.tif, a_B4.tif: take away one, or change --bands-from",
        "b": "b: B08 has no file b_B08.tif, got b_B04.tif: add it, or change --bands-from",
    }
    assert [case.name for case in found.cases] == ["d"]
    assert found.left_out == {".tif": 1}


def test_inputs_that_no_pattern_fits(tmp_path, monkeypatch):
    (tmp_path / "a.tif").touch()
    rule = CaseSelection(bands=BandsFrom("{case}_{band}.jp2", ("B04",)))
    with pytest.raises(InputError, match=r"--bands-from must match files of the input, one for each of B04, got .*/a\.tif"):
        find_input([str(tmp_path)], rule)
    with pytest.raises(InputError, match="--bands-from groups files of this machine, got /vsizip/a"):
        find_input(["/vsizip/a.zip/a.tif"], rule)


@pytest.mark.parametrize(
    "pattern",
    [
        *(
            "{case}_{band}_{date}.tif",
            "{case}_{date:}.tif",
            "{case}_{date:a,a}.tif",
            "{case:a}_{date}.tif",
            "{case}_{band:a}",
        ),
        *("{band}.tif", "{case}.tif", "{case}_{band}_{band}.tif", "{case}_{band}_{x}.tif", "../{case}_{band}"),
    ],
)
def test_patterns_that_do_not_say_what_is_what(pattern):
    with pytest.raises(SettingsError, match=r"bands_from: must have \{case\}, and \{band\}, \{date\} or \{input\} once"):
        load_settings(None, {"input": "a", "model": "m.onnx", "bands_from": pattern})


def test_names_are_needed_and_numbers_are_not():
    assert bands_from(None, NAMELESS) is None
    with pytest.raises(SettingsError, match="--bands-from finds files by the names of the model's channels"):
        bands_from("{case}_{band}.tif", NAMELESS)
    with pytest.raises(SettingsError, match="leave --bands out"):
        load_settings(None, {"input": "a", "model": "m.onnx", "bands_from": "{case}_{band}.tif", "bands": "1,2"})
