"""Choose the bands of a scene for the channels of a model, by the names of both."""

from collections.abc import Sequence

from segpipe.contract import Contract
from segpipe.errors import SourceError
from segpipe.formats.scenes.names import plain
from segpipe.formats.scenes.product import BandFile
from segpipe.overrides import Overrides

LISTED = 30
"""Most bands that a message names."""


def match_channels(bands: Sequence[BandFile], contract: Contract, overrides: Overrides) -> tuple[list[BandFile], list[str]]:
    """The bands in the order of the model's channels, and a note if their names differ.

    A product's own names come before common ones. ``--bands`` takes precedence, and counts the bands of the product. A model
    whose channels have no names takes a scene that has as many bands.

    Raises:
        SourceError: a channel has no band, or several.
    """
    names, count = contract.channel_names, contract.channel_count
    if overrides.bands is not None:
        return _chosen(bands, overrides.bands, count), []
    if names is None:
        if len(bands) != count:
            raise SourceError(
                f"the model takes {count} channels without names, got {len(bands)} bands ({_listed(bands)}): name the "
                "contract's channels as the bands, or say which with --bands, counted in this order"
            )
        return list(bands), []
    found = [_band_for(name, bands) for name in names]
    same = all(plain(name) == plain(band.name) for name, band in zip(names, found, strict=True))
    listed = ", ".join(band.name for band in found)
    return found, [] if same else [f"bands called {listed} were taken for the channels {', '.join(names)}"]


def _chosen(bands: Sequence[BandFile], chosen: Sequence[int], count: int) -> list[BandFile]:
    if len(chosen) != count or max(chosen) > len(bands):
        raise SourceError(
            f"--bands must name {count} of the scene's bands, 1 to {len(bands)} ({_listed(bands)}), "
            f"got {','.join(map(str, chosen))}"
        )
    return [bands[number - 1] for number in chosen]


def _band_for(channel: str, bands: Sequence[BandFile]) -> BandFile:
    for names_of in (lambda band: (band.name,), lambda band: band.others):
        found = [band for band in bands if plain(channel) in map(plain, names_of(band))]
        if len(found) == 1:
            return found[0]
        if found:
            raise SourceError(
                f"several bands are called {channel}, {_listed(found)}: name one in the contract's channels, or give --bands"
            )
    raise SourceError(
        f"there is no band for the model's channel {channel} among {_listed(bands)}: if the product should have it, it is "
        "incomplete, so download it again; else name the contract's channels as these, or say which with --bands, counted "
        "in this order"
    )


def _listed(bands: Sequence[BandFile]) -> str:
    more = [f"and {len(bands) - LISTED} more"] if len(bands) > LISTED else []
    return ", ".join([*(band.name for band in bands[:LISTED]), *more]) or "none"
