"""The bands of a case whose files hold one date or one input of the network each."""

from collections.abc import Sequence

from segpipe.contract import Contract
from segpipe.errors import SourceError
from segpipe.formats.case import SceneFiles
from segpipe.formats.raster.bands import bands_of, match_bands
from segpipe.formats.raster.confine import confined
from segpipe.formats.raster.gdal import open_raster, source_errors, stays_here
from segpipe.formats.raster.kinds import explained
from segpipe.formats.scenes.product import BandFile
from segpipe.overrides import Overrides


def bands_of_files(index: SceneFiles, contract: Contract, overrides: Overrides) -> tuple[list[BandFile], list[str]]:
    """The bands in the order of the model's channels, and notes on how those of each file were matched.

    Raises:
        SourceError: a file cannot be opened, or its bands are not its share of the model's channels.
    """
    bands: dict[int, BandFile] = {}
    notes = []
    for name, path, channels in zip(index.bands, index.files, index.channels, strict=True):
        own = contract.of_channels(channels)
        numbers, said = _matched(path, own, overrides)
        notes += [f"{name}: {note}" for note in said]
        named = own.channel_names or tuple(f"band {number}" for number in numbers)
        for channel, number, title in zip(channels, numbers, named, strict=True):
            bands[channel] = BandFile(f"{name} {title}", path, number=number)
    return [bands[channel] for channel in range(contract.channel_count)], notes


def _matched(path: str, contract: Contract, overrides: Overrides) -> tuple[Sequence[int], Sequence[str]]:
    remote = overrides.remote
    errors = source_errors(f"{path} cannot be opened", (path,))
    with explained(path), errors, confined(stays_here(path, remote=remote)), open_raster(path, remote=remote) as dataset:
        bands = bands_of(dataset)
    try:
        matched = match_bands(bands, contract, overrides)
    except SourceError as error:
        raise SourceError(f"{path}: {error}") from None
    return matched.bands, matched.notes
