"""A vector file that lost rows as it was written is an error, where GDAL reports none."""

import errno
import sqlite3
from contextlib import closing

import pytest
import shapely
from fields import write_fields

from segpipe.vectors.file import unwritten
from segpipe.vectors.written import check_written, clear, journal

BOXES = [shapely.box(n, 0, n + 1, 1) for n in range(5)]
EMPTY = [shapely.Polygon(), None]


def change(path, statement):
    with closing(sqlite3.connect(path)) as base, base:
        base.create_function("ST_IsEmpty", 1, lambda value: 0)
        base.create_function("ST_MinX", 1, lambda value: 0)
        base.executescript(statement)


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".fgb"])
@pytest.mark.parametrize("shapes", [BOXES, [], [*BOXES, *EMPTY]], ids=["boxes", "none", "empty"])
def test_a_whole_file_passes_and_one_row_less_does_not(suffix, shapes, tmp_path):
    if suffix == ".fgb":
        shapes = [shape for shape in shapes if shape]
    path = write_fields(tmp_path / f"it's {len(shapes)}%3f{suffix}", shapes, name=[str(n) for n in range(len(shapes))])
    check_written(path, len(shapes))
    with pytest.raises(OSError, match=f"only {len(shapes)} of {len(shapes) + 1} rows could be written whole") as lost:
        check_written(path, len(shapes) + 1)
    assert (lost.value.errno, lost.value.filename) == (errno.EIO, str(path))


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM rtree_fields_geom WHERE id = 3",
        "UPDATE gpkg_ogr_contents SET feature_count = 4",
        "DELETE FROM gpkg_spatial_ref_sys WHERE srs_id = 32633",
    ],
)
@pytest.mark.filterwarnings("ignore:unable to read srs_id", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_geopackage_is_whole_with_its_index_and_catalogue(statement, tmp_path):
    path = write_fields(tmp_path / "fields.gpkg", BOXES)
    change(path, statement)
    with pytest.raises(OSError, match="of 5 rows could be written whole"):
        check_written(path, 5)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(errno.EIO, "only 0 of 2 rows could be written whole"),
            "only 0 of 2 rows could be written whole: check the disk",
        ),
        (
            RuntimeError("sqlite3_exec(A) failed: B) failed: database or disk is full"),
            "No space left on device: free space there",
        ),
        (RuntimeError("sqlite3_exec(A) failed: disk I/O error"), "disk I/O error: name another file"),
        (RuntimeError("no such driver"), "no such driver: name another file"),
    ],
)
def test_the_reason_is_short_and_has_its_mend(error, said, tmp_path):
    assert unwritten(tmp_path / "fields.gpkg", error) == said


def test_a_journal_that_is_left_is_an_error_and_goes_with_its_file(tmp_path):
    path = write_fields(tmp_path / "fields.gpkg", BOXES)
    journal(path).touch()
    with pytest.raises(OSError, match="only 5 of 5 rows could be written whole"):
        check_written(path, 5)
    clear(path)
    assert not list(tmp_path.iterdir())
    clear(path)
