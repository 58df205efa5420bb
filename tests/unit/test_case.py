"""What a message says of a case whose path must not be read."""

import pytest

from segpipe.formats.case import Case, without_path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("in/Zorn/CT: 1 slice is missing", "0003: 1 slice is missing"),
        ("in/Zorn/CT/IM0003.dcm is cut", "in/Zorn/CT/IM0003.dcm is cut"),
        ("in/Zorn/CT.dcm and /data/in/Zorn/CT", "in/Zorn/CT.dcm and /data/in/Zorn/CT"),
        ("min/max of within/Zorn/", "min/max of within/Zorn/"),
    ],
)
def test_the_name_takes_the_place_of_the_path(text, expected):
    assert without_path(text, Case("0003", "in/Zorn/CT")) == expected


def test_a_path_without_folder():
    assert without_path("a.dcm is cut", Case("0001", "a.dcm")) == "0001 is cut"
