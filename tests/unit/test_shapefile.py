"""The files of a Shapefile: one that cannot be read is named, where GDAL goes on without it."""

import pyogrio
import pytest
import shapely
from fields import write_fields
from pyogrio.errors import DataSourceError
from unreadable import fail_to_open

from segpipe.accuracy import points
from segpipe.errors import ZonesError
from segpipe.vectors.file import Selection, read_frame, read_surfaces

NAMES = ["Müller", "Øst"]


@pytest.fixture
def shapefile(tmp_path):
    return write_fields(tmp_path / "Fields.shp", [shapely.box(0, 0, 9, 9), shapely.box(10, 0, 19, 9)], name=NAMES)


def readers(path):
    return lambda: read_surfaces(Selection(path, column="name")), lambda: points.read_frame(path, "name")


@pytest.mark.parametrize("reader", [0, 1])
@pytest.mark.parametrize("suffix", ["shx", "dbf", "prj", "cpg", "CPG"])
def test_a_file_of_a_shapefile_that_cannot_be_read_is_named(suffix, reader, shapefile, monkeypatch):
    part = shapefile.with_suffix(f".{suffix.lower()}").rename(shapefile.with_suffix(f".{suffix}"))
    read = readers(shapefile)[reader]
    fail_to_open(monkeypatch, part)
    with pytest.raises(
        ZonesError, match=f"{part} cannot be read, and belongs to {shapefile}: Input/output error: check the disk"
    ):
        read()


@pytest.mark.parametrize("reader", [0, 1])
def test_an_encoding_that_was_read_in_one_of_two_tries_is_no_name(reader, shapefile, monkeypatch):
    """GDAL takes texts for Latin-1 where it cannot read the .cpg."""
    read_dataframe, tries = pyogrio.read_dataframe, []
    encoding, away = shapefile.with_suffix(".cpg"), shapefile.with_name("away")

    def blind_once(path, **options):
        tries.append(path)
        if len(tries) > 1:
            return read_dataframe(path, **options)
        encoding.rename(away)
        frame = read_dataframe(path, **options)
        away.rename(encoding)
        return frame

    monkeypatch.setattr(pyogrio, "read_dataframe", blind_once)
    with pytest.raises(ZonesError, match=f"{shapefile}: a file that belongs to it could be read in only one of two tries"):
        readers(shapefile)[reader]()


def test_a_whole_shapefile_and_other_files_are_read(shapefile, tmp_path):
    other = write_fields(tmp_path / "fields.gpkg", [shapely.box(0, 0, 9, 9)] * 2, name=NAMES)
    for path in (shapefile, other):
        assert read_frame(Selection(path), ["name"])["name"].tolist() == NAMES
        assert read_frame(Selection(path))["name"].tolist() == NAMES
        assert len(read_frame(Selection(path), [])) == 2
        assert points.read_frame(path, "name")["name"].tolist() == NAMES


@pytest.mark.parametrize(("times", "tries"), [(1, 2), (9, 2)])
def test_a_fault_that_has_passed_is_no_damage(times, tries, shapefile, monkeypatch):
    """GDAL does not pass on the number of an error: a file is read once more before it is called damaged."""
    list_layers, calls = pyogrio.list_layers, []

    def faulty(path):
        calls.append(path)
        if len(calls) <= times:
            raise DataSourceError("sqlite3_open(z.gpkg) failed: disk I/O error")
        return list_layers(path)

    monkeypatch.setattr(pyogrio, "list_layers", faulty)
    if times < tries:
        assert read_frame(Selection(shapefile), ["name"])["name"].tolist() == NAMES
    else:
        with pytest.raises(ZonesError, match=r"cannot be read as a file of polygons: .*disk I/O error"):
            read_frame(Selection(shapefile), ["name"])
    assert len(calls) == tries
