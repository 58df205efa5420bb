"""Read a scene of many files as one raster."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from rasterio.io import DatasetReader
from rasterio.windows import Window as RasterWindow

from segpipe.contract import Contract
from segpipe.errors import SourceError
from segpipe.formats.case import Case
from segpipe.formats.raster.confine import confined
from segpipe.formats.raster.gdal import open_vrt, source_errors
from segpipe.formats.raster.source import RasterSource, RasterTemplate, naming
from segpipe.formats.scenes.file_channels import bands_of_files
from segpipe.formats.scenes.layers import OpenedBand, open_band
from segpipe.formats.scenes.match import match_channels
from segpipe.formats.scenes.product import BandFile, Product
from segpipe.formats.scenes.reading import index_of, product_of
from segpipe.formats.scenes.vrt import SceneBand, finest, on_grid, vrt_of
from segpipe.formats.source import Pixels
from segpipe.overrides import AS_STORED, Overrides


class SceneSource(RasterSource):
    """A scene whose bands are files; one handle, for one thread.

    Args:
        case: a scene.
        contract: names the bands.
        overrides: the user's settings.
        size: rows and columns of a reduced view; None: the finest grid of the wanted bands.

    Raises:
        SourceError: a band is missing, damaged, or on other ground than the others.
    """

    def __init__(
        self, case: Case, contract: Contract, overrides: Overrides = AS_STORED, size: tuple[int, int] | None = None
    ) -> None:
        self._case, self._size = case, size
        every = tuple(range(1, contract.channel_count + 1))
        self._chosen = overrides
        super().__init__(case.path, contract, replace(overrides, bands=every))

    def _begin(self, contract: Contract, overrides: Overrides) -> None:
        product = product_of(self._case)
        with naming(self._case.path):
            wanted, said = _wanted(self._case, product, contract, self._chosen)
            self._numbers = [product.bands.index(band) + 1 if band in product.bands else band.number for band in wanted]
            if contract.pixel == "physical" and product.unscaled is not None:
                raise SourceError(product.unscaled)
        opened = _opened(wanted, product, remote=overrides.remote)
        self._layers = [_declared(one.layer, overrides) for one in opened]
        if contract.pixel == "physical":
            _check_scaled(opened, product)
        self._read = tuple(dict.fromkeys([*(file for one in opened for file in one.files), *product.metadata]))
        tags = {**opened[self._layers.index(finest(self._layers))].tags, **product.scene}
        self._text = vrt_of(self._layers, overrides.band_resampling, tags, self._size)
        own = dict.fromkeys(band.note for band in wanted if band.note is not None)
        self._said = (*said, *own, *_resampled(self._layers, overrides), *product.notes)
        self._said += product.stored_notes if contract.pixel == "stored" else ()
        super()._begin(contract, overrides)
        if product.parts:
            self.template = RasterTemplate(all(one.picture for one in opened))

    @property
    def dataset(self) -> DatasetReader:
        """The bands as one dataset, in the order of the model's channels."""
        return self._dataset

    @property
    def numbers(self) -> Sequence[int]:
        """Numbers of the bands, counted from 1, in the order of the channels."""
        return self._numbers

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the bands, in the order of the model's channels."""
        return tuple(layer.name for layer in self._layers)

    def _open(self) -> DatasetReader:
        return open_vrt(self._text, remote=self._remote)

    def _files_of(self, dataset: DatasetReader) -> tuple[str, ...]:
        del dataset
        return self._read

    def _own_notes(self, contract: Contract) -> Sequence[str]:
        del contract
        return self._said

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Each file is explained by itself."""
        yield

    def _pixels(self, where: RasterWindow) -> Pixels:
        """Pixels ``(channels, rows, cols)``, band by band: an error names the file of the band."""
        return np.stack([self._of_band(band, layer, where) for band, layer in zip(self.bands, self._layers, strict=True)])

    def _of_band(self, band: int, layer: SceneBand, where: RasterWindow) -> Pixels:
        with source_errors(f"{layer.path} cannot be read at row {where.row_off}, column {where.col_off}", (layer.path,)):
            pixels: Pixels = self._dataset.read(band, window=where, out_dtype=self.dtype)
            return pixels


def _wanted(
    case: Case, product: Product, contract: Contract, overrides: Overrides
) -> tuple[Sequence[BandFile], Sequence[str]]:
    """The bands of the model's channels, and notes on how they were matched."""
    index = index_of(case)
    if index.kind == "parts":
        return bands_of_files(index, contract, overrides)
    return match_channels(product.bands, contract, overrides)


def _opened(wanted: Sequence[BandFile], product: Product, *, remote: bool) -> list[OpenedBand]:
    """The headers of the wanted bands; a band that is wanted twice is opened once."""
    with confined(to_this_machine=not remote):
        each = {band: open_band(band, product, remote=remote) for band in dict.fromkeys(wanted)}
    return [each[band] for band in wanted]


def _declared(layer: SceneBand, overrides: Overrides) -> SceneBand:
    """A layer with the nodata value of ``--nodata``, which then counts before pixels are interpolated, too."""
    chosen = overrides.nodata
    if chosen is None:
        return layer
    return replace(layer, nodata=None if chosen == "none" else math.nan if chosen == "nan" else float(chosen))


def _check_scaled(opened: Sequence[OpenedBand], product: Product) -> None:
    for one in opened:
        if not (one.scaled or one.layer.classes or product.own_tags):
            raise SourceError(
                f"{one.layer.path}: the contract's pixel = \"physical\" needs a scale, and neither the product's metadata "
                'nor the file have one: set the tag, as with gdal_edit.py -scale 0.0001, or use pixel = "stored"'
            )


def _resampled(layers: Sequence[SceneBand], overrides: Overrides) -> list[str]:
    """Notes on bands that are not read on their own grid."""
    grid = finest(layers)
    ways: dict[str, list[str]] = {}
    for layer in dict.fromkeys(layers):
        if not on_grid(layer, grid):
            ways.setdefault("nearest" if layer.classes else overrides.band_resampling, []).append(layer.name)
    return [
        f"{', '.join(names)}: resampled to the grid of {grid.name}, {way}, as --band-resampling says"
        if way == overrides.band_resampling
        else f"{', '.join(names)}: resampled to the grid of {grid.name}, {way}, as classes are"
        for way, names in ways.items()
    ]
