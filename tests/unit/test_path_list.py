"""Lists of inputs: what each line names, by hand."""

import pytest

from segpipe.errors import InputError
from segpipe.formats.path_list import entries, is_file, list_entries


@pytest.fixture
def written(tmp_path):
    def write(name, text, *files):
        for file in files:
            (tmp_path / file).touch()
        (tmp_path / name).write_bytes(text.encode("utf-8", "surrogateescape"))
        return tmp_path / name

    return write


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("l.txt", "a.tif\n\n  # aside\n sub/b.tif \r\n", [(1, "a.tif"), (4, "sub/b.tif")]),
        ("l.lst", "\ufeffa.tif", [(1, "a.tif")]),
        ("l.csv", "a.tif,1\nb.tif,2\n", [(1, "a.tif"), (2, "b.tif")]),
        ("l.csv", 'date, Path \n2024,"a, b.tif"\n', [(2, "a, b.tif")]),
        ("l.csv", 'Datum;"path";x\n2,5;"a, b;c.tif";1\n', [(2, "a, b;c.tif")]),
        ("l.csv", "x\tfile\n1,2\ta.tif\n", [(2, "a.tif")]),
        ("l.csv", "image,path\nx.png,a.tif\n", [(2, "a.tif")]),
        ("l.txt", "", []),
    ],
)
def test_each_line_is_a_path(name, text, found, written):
    file = written(name, text)
    assert list(entries(file)) == found
    assert list_entries(str(file)) == [path for _, path in found]


@pytest.mark.parametrize("coding", ["utf-16-le", "utf-16-be"])
def test_a_list_in_utf_16_is_named(coding, tmp_path):
    (tmp_path / "l.txt").write_bytes("\ufeffa.tif\r\n".encode(coding))
    with pytest.raises(InputError, match=r"must be in UTF-8, and .*l\.txt is in UTF-16, .*: save it as UTF-8"):
        list(entries(tmp_path / "l.txt"))


def test_a_line_that_names_a_file_is_a_path_whatever_it_looks_like(written):
    file = written("l.txt", "# 1.tif\n# 2.tif\nend \n", "# 1.tif", "end ")
    assert list(entries(file)) == [(1, "# 1.tif"), (3, "end ")]


def test_bytes_that_are_no_text_are_kept(written):
    assert list(entries(written("l.txt", "\udcff.tif\n"))) == [(1, "\udcff.tif")]


def test_what_cannot_be_read_is_an_error(written, tmp_path):
    with pytest.raises(InputError, match=r"the list cannot be read: .*none.txt: No such file"):
        list_entries(str(tmp_path / "none.txt"))
    with pytest.raises(InputError, match=r"l.csv line 2: every row must have a path in column 1, got 1 column"):
        list_entries(str(written("l.csv", "date,path\n2024\n")))


def test_long_text_is_no_file():
    assert not is_file("x" * 100_000)
