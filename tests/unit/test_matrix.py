"""Confusion matrices in CSV files, and what they may not be."""

import golden
import numpy as np
import pytest

from segpipe.accuracy.matrix import read_matrix
from segpipe.errors import InputError

GOOD = """map,a,b,area_ha,pixels
a,66,5,18000,200000
b,2,313,580500,6450000
"""


@pytest.fixture
def file(tmp_path):
    def write(text, encoding="utf-8"):
        (tmp_path / "m.csv").write_text(text, encoding=encoding)
        return tmp_path / "m.csv"

    return write


def write_golden():
    m = golden.OLOFSSON_2014
    rows = [f"{name},{','.join(map(str, row))},{area:g}" for name, row, area in zip(m.mapped, m.counts, m.area, strict=True)]
    return "\n".join([f"map,{','.join(m.reference)},area_ha", *rows])


def test_a_matrix_is_read_whole(file):
    found = read_matrix(file(write_golden()))
    assert (found.mapped, found.reference, found.unit) == (golden.OLOFSSON_2014.mapped, golden.OLOFSSON_2014.reference, "ha")
    np.testing.assert_array_equal(found.counts, golden.OLOFSSON_2014.counts)
    np.testing.assert_array_equal(found.area, golden.OLOFSSON_2014.area)
    assert found.pixels is None


@pytest.mark.parametrize(
    "change",
    [
        lambda t: "\ufeff" + t,
        lambda t: t.replace(",", ";"),
        lambda t: t.replace("\n", "\r\n\r\n"),
        lambda t: t.replace("a,66", " a , 66 "),
    ],
)
def test_what_spreadsheets_write_is_read(file, change):
    found = read_matrix(file(change(GOOD)))
    assert found.counts.tolist() == [[66, 5], [2, 313]]
    assert found.pixels.tolist() == [200000, 6450000]
    assert found.mapped == ("a", "b")


@pytest.mark.parametrize(
    ("was", "now", "said"),
    [
        ("66", "many", "row a, column a must be a number of at least 0 and at most 1e\\+15, got 'many'"),
        ("66", "-3", "row a, column a must be a number of at least 0 and at most 1e\\+15, got '-3'"),
        ("66", "", "row a, column a must be a number of at least 0 and at most 1e\\+15, got ''"),
        ("66", "nan", "got 'nan'"),
        ("66", "1e400", "got '1e400'"),
        ("18000", "1e300", "got '1e300'"),
        ("66", "6.5", "counts of units must be whole, got 6.5"),
        ("66,", "", "each row must have 5 cells, as the head, and row 2 has 4"),
        ("area_ha", "size", "must have one column area, or area_ha, with the mapped area of each class, and has 0"),
        ("pixels", "area", "and has 2"),
        ("b,2", "a,2", "rows must have different names, and a is there twice"),
        ("map,a,b", "map,a,a", "columns must have different names, and a is there twice"),
        ("b,2", ",2", "rows must be named after classes"),
        ("200000", "12", "a has 71 units in the sample and 12 pixels"),
    ],
)
def test_what_is_no_matrix_is_named(file, was, now, said):
    with pytest.raises(InputError, match=said):
        read_matrix(file(GOOD.replace(was, now, 1)))


def test_files_that_are_no_tables_are_named(file, tmp_path):
    with pytest.raises(InputError, match="must be a CSV file with a head and rows, and has 0 rows"):
        read_matrix(file(""))
    with pytest.raises(InputError, match="must be a CSV file in UTF-8"):
        read_matrix(file(GOOD.replace("a", "ä"), encoding="latin-1"))
    with pytest.raises(InputError, match="cannot be read"):
        read_matrix(tmp_path / "none.csv")
    with pytest.raises(InputError, match="mapped areas must not all be 0"):
        read_matrix(file(GOOD.replace("18000", "0").replace("580500", "0")))


def test_an_unclosed_quote_is_one_line(file):
    rows = "\n".join("a,b" for _ in range(60_000))
    with pytest.raises(InputError, match=r"m\.csv must be a CSV file, and is not: field larger than field limit"):
        read_matrix(file(f'map,"a\n{rows}'))
