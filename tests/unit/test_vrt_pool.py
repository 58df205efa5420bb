"""A source of a VRT that did not open once is opened again: GDAL alone would read it as zeros from then on."""

import threading
from xml.sax.saxutils import escape

import numpy as np
import pytest
from networks import contract

from segpipe.contract import parse_contract
from segpipe.errors import SourceError
from segpipe.formats.raster.gdal import gdal_options, open_vrt, source_errors
from segpipe.formats.raster.gdal_readers import UnattributedError, reading
from segpipe.formats.raster.source import RasterSource
from segpipe.formats.raster.vrt_pool import changes, forget_failed, is_doubtful
from segpipe.geometry.windows import Window

WHOLE = Window((0, 0), (8, 9))
PLACE = '<SrcRect xOff="0" yOff="0" xSize="9" ySize="8"/><DstRect xOff="0" yOff="0" xSize="9" ySize="8"/>'


def vrt(source):
    named = f'<SourceFilename relativeToVRT="0" shared="0">{source}</SourceFilename><SourceBand>1</SourceBand>'
    band = f'<VRTRasterBand dataType="Byte" band="1"><SimpleSource>{named}{PLACE}</SimpleSource></VRTRasterBand>'
    return f'<VRTDataset rasterXSize="9" rasterYSize="8">{band}</VRTDataset>'


@pytest.fixture
def other(raster):
    """Another VRT that is open meanwhile, as that of the next case."""
    with gdal_options(), open_vrt(vrt(raster("other.tif", np.full((1, 8, 9), 5, np.uint8)))) as dataset:
        assert (dataset.read() == 5).all()
        yield dataset


@pytest.mark.parametrize("nested", [False, True])
def test_a_source_that_did_not_open_once_is_not_read_as_zeros(nested, other, raster, tmp_path):
    path, away, case = raster("a.tif", np.full((1, 8, 9), 7, np.uint8)), tmp_path / "away", tmp_path / "a.vrt"
    case.write_text(vrt(escape(vrt(path))) if nested else vrt(path))
    source = RasterSource(str(case), parse_contract(contract(1, 2), "x"))
    path.rename(away)
    with pytest.raises(SourceError, match=r"a.vrt cannot be read at row 0"):
        source.read(WHOLE)
    source.close()
    away.rename(path)
    source = RasterSource(str(case), parse_contract(contract(1, 2), "x"))
    assert (source.read(WHOLE)[0] == 7).all()
    source.close()
    assert (other.read() == 5).all()


def fail_elsewhere():
    def read():
        with reading(), gdal_options():
            forget_failed()

    thread = threading.Thread(target=read)
    thread.start()
    thread.join()


def test_a_read_beside_a_failed_source_is_repeated(other):
    with gdal_options(), pytest.raises(UnattributedError, match="a source of a VRT failed in another thread"):
        with_a_neighbour()


def with_a_neighbour():
    with source_errors("b.vrt cannot be read", ()):
        fail_elsewhere()


def test_reads_are_in_doubt_from_the_failure_to_its_end(other):
    before = changes()
    assert not is_doubtful(before)
    forget_failed()
    assert is_doubtful(before)
    assert not is_doubtful(changes())
    assert is_doubtful(changes() - 1)  # it began while sources were forgotten
