"""Files of points: which ids they may have, what they may be, and what is written first."""

from types import SimpleNamespace

import geopandas
import numpy as np
import pytest

from segpipe.accuracy import points
from segpipe.accuracy.draw import DrawnPixel
from segpipe.accuracy.points import design_path, read_design, read_frame, read_labels, write_sample
from segpipe.errors import InputError

POPULATION = SimpleNamespace(classes=("a", "b"), pixels=np.array([[70, 30]]), areas=np.array([[0.7, 0.3]]), store="out",
                             identity="x", unit="ha")  # fmt: skip


def unit(stratum, area=0.01):
    return DrawnPixel("scene", 3, 4, stratum, area, 500_045.0, 5_399_965.0, "EPSG:32633")


@pytest.mark.parametrize("number", ["inf", "-inf", "nan", "1.7", "1e999", "x", ""])
def test_ids_are_whole(tmp_path, number):
    (tmp_path / "t.csv").write_text(f"id,reference\n1,a\n{number},b\n")
    with pytest.raises(InputError, match="must have a whole number in each row of the column 'id'"):
        read_labels(tmp_path / "t.csv", "reference")


def test_whole_numbers_may_have_a_point(tmp_path):
    (tmp_path / "t.csv").write_text("id,reference\n1.0,a\n2e0,b\n")
    assert read_labels(tmp_path / "t.csv", "reference").ids == (1, 2)


def test_a_file_that_leads_elsewhere_is_refused(tmp_path):
    xy = geopandas.points_from_xy([1.0], [2.0], crs=4326)
    geopandas.GeoDataFrame({"reference": ["a"]}, geometry=xy).to_file(tmp_path / "p.gpkg")
    layer = f'<OGRVRTLayer name="p"><SrcDataSource>{tmp_path}/p.gpkg</SrcDataSource></OGRVRTLayer>'
    text = f"<OGRVRTDataSource>{layer}</OGRVRTDataSource>"
    (tmp_path / "p.vrt").write_text(text)
    with pytest.raises(InputError, match="must hold its data, and leads to other sources: convert it with ogr2ogr"):
        read_frame(tmp_path / "p.vrt", "reference")


def test_a_pixel_off_the_earth_is_one_line(tmp_path):
    with pytest.raises(InputError, match="points must lie on the Earth, and pixel 3, 4 of scene does not"):
        write_sample(tmp_path / "p.gpkg", POPULATION, [unit(0), unit(1, 0.0)], 0, show=False)
    assert not [*tmp_path.iterdir()]


def test_points_never_lie_beside_the_design_of_others(tmp_path, monkeypatch):
    """A process that ends between the two files leaves the design alone, and no points with that of another sample."""
    path = tmp_path / "p.gpkg"
    write_sample(path, POPULATION, [unit(0), unit(1)], 0, show=False)

    class KilledError(BaseException):
        pass

    whole = points.commit

    def killed(draft, target):
        if target == path:
            raise KilledError
        whole(draft, target)

    monkeypatch.setattr(points, "commit", killed)
    with pytest.raises(KilledError):
        write_sample(path, POPULATION, [unit(0), unit(1)], 7, show=False)
    assert not path.exists()
    assert read_design(path).seed == 7
    monkeypatch.undo()
    write_sample(path, POPULATION, [unit(0), unit(1)], 8, show=False)
    assert (len(geopandas.read_file(path)), read_design(path).seed) == (2, 8)
    assert sorted(tmp_path.iterdir()) == [design_path(path), path]
