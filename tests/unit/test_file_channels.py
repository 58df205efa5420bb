"""Files of one date or one input each become cases, in the order of the dates or inputs of the model."""

from pathlib import Path

import pytest
from networks import contract

from segpipe.contract import parse_contract
from segpipe.errors import SettingsError
from segpipe.formats.banded import bands_from, group
from segpipe.formats.case import Case
from segpipe.formats.file_channels import chronological

IMAGES = {"before": {"channels": "0:3"}, "after": {"channels": "3:6"}}
SENSORS = {"s2": {"channels": "1:6"}, "dem": {"channels": [0]}, "date": {"value": 3}}


def terms(inputs=None, channels=6, **changes):
    return parse_contract(contract(channels, 3, inputs=inputs, **changes), "c.toml")


def series(dates=3, axes="NTCHW"):
    return terms({"image": {"channels": ":", "axes": axes, "dates": dates}})


def grouped(pattern, own, *files):
    cases = [Case(str(Path(file).with_suffix("")), f"/in/{file}") for file in files]
    found = group(cases, bands_from(pattern, own))
    return {c.name: found.errors.get(c) or (list(c.index.bands), list(c.index.files), c.index.channels) for c in found.cases}


def test_two_images_in_two_folders():
    files = ["test/B/x_1.png", "test/A/x_1.png", "test/label/x_1.png"]
    assert grouped("{date:A,B}/{case}.png", terms(IMAGES), *files) == {
        "test/x_1": (["A", "B"], ["/in/test/A/x_1.png", "/in/test/B/x_1.png"], ((0, 1, 2), (3, 4, 5)))
    }
    assert grouped("{input:A,B}/{case}.png", terms(IMAGES), *files) == grouped(
        "{date:A,B}/{case}.png", terms(IMAGES), *files
    )
    own = grouped("{input}/{case}.png", terms(IMAGES), "after/1.png", "before/1.png")
    assert own["1"][1] == ["/in/before/1.png", "/in/after/1.png"]


def test_inputs_of_different_channels_and_none_for_a_constant():
    assert grouped("{case}_{input}.tif", terms(SENSORS), "a_dem.tif", "a_s2.tif") == {
        "a": (["s2", "dem"], ["/in/a_s2.tif", "/in/a_dem.tif"], ((1, 2, 3, 4, 5), (0,)))
    }


def test_a_channel_of_two_inputs_is_in_the_file_of_the_first():
    both = terms({"all": {"channels": "0:6"}, "some": {"channels": "0:2"}})
    assert bands_from("{case}_{input}.tif", both).names == ("all",)


@pytest.mark.parametrize(
    ("files", "dates"),
    [
        (["a_2024-05-01.tif", "a_2024-03-01.tif", "a_2023-12-01.tif"], ["2023-12-01", "2024-03-01", "2024-05-01"]),
        (["a_20240501.tif", "a_20240301.tif", "a_20231201.tif"], ["20231201", "20240301", "20240501"]),
        (["a_2024_05.tif", "a_2024_03.tif", "a_2023_12.tif"], ["2023_12", "2024_03", "2024_05"]),
        (["a_t10.tif", "a_t2.tif", "a_t1.tif"], ["t1", "t2", "t10"]),
        (["a_2025.tif", "a_2024.tif", "a_2023.tif"], ["2023", "2024", "2025"]),
    ],
)
def test_dates_come_in_order(files, dates):
    (found,) = grouped("{case}_{date}.tif", series(), *files).items()
    assert found == ("a", (dates, [f"/in/a_{date}.tif" for date in dates], ((0, 1), (2, 3), (4, 5))))


def test_numbers_of_a_case_are_not_dates():
    files = [f"field_7_{date}.tif" for date in ("20240301", "20240401", "20240501")]
    assert list(grouped("{case}_{date}.tif", series(), *files)) == ["field_7"]


def test_stacked_dates_of_a_network_without_inputs():
    found = grouped("{case}/{date:pre,post}.tif", terms(), "x/post.tif", "x/pre.tif")
    assert found == {"x": (["pre", "post"], ["/in/x/pre.tif", "/in/x/post.tif"], ((0, 1, 2), (3, 4, 5)))}


ERRORS = {
    "missing": (
        "{case}_{date}.tif",
        series(),
        ["a_1.tif", "a_2.tif"],
        "a: the model takes 3 dates, got 2, 1, 2: add what is",
    ),
    "too many": ("{case}_{date}.tif", series(), [f"a_{k}.tif" for k in range(4)], "a: the model takes 3 dates, got 4"),
    "listed, missing": (
        "{case}_{date:x,y}.tif",
        terms(IMAGES),
        ["a_x.tif"],
        "a: y has no file a_y.tif, got a_x.tif: add it",
    ),
    "twice": (
        "{case}_{date:x,y}.*",
        terms(IMAGES),
        ["a_x.tif", "a_x.png", "a_y.tif"],
        "a: x must have one file like a_x.*, got a_x.png, a_x.tif, a_y.tif: take away one",
    ),
    "written differently": (
        "{case}_{date}.tif",
        series(),
        ["a_2024-03.tif", "a_20240401.tif", "a_2024-05.tif"],
        "a: dates must be written alike, got 2024-03, 2024-05, 20240401: rename the files",
    ),
    "uneven": (
        "{case}_{date}.tif",
        terms(),
        [f"a_{k}.tif" for k in range(4)],
        "each date must have as many channels, got 4 dates",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_a_case_of_other_dates_is_an_error(case):
    pattern, own, files, said = ERRORS[case]
    (found,) = grouped(pattern, own, *files).values()
    assert said in found


@pytest.mark.parametrize(
    ("pattern", "own", "match"),
    [
        ("{case}_{input}.tif", terms(), r"needs inputs in the contract, got none: add them, or take \{date\} or \{band\}"),
        (
            "{case}_{input:a}.tif",
            terms(IMAGES),
            r"a file for each of the inputs before, after, got \{input:a\}: name them in",
        ),
        ("{case}_{date:a,b}.tif", series(), r"must list the model's 3 dates, got 2: a, b"),
        (
            "{case}_{date}.tif",
            terms({"s1": {"channels": "0:3", "axes": "NTCHW", "dates": 3}, "dem": {"channels": "3:6"}}),
            r"needs one input of dates, or an input for each date",
        ),
    ],
)
def test_patterns_that_do_not_fit_the_contract_are_refused(pattern, own, match):
    with pytest.raises(SettingsError, match=match):
        bands_from(pattern, own)


def test_order_of_dates():
    assert chronological(["20240301T101021", "20240301T091021"]) == ["20240301T091021", "20240301T101021"]
