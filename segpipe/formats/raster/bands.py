"""Match the bands of a file to the channels of a model.

Names take precedence over colours, colours over order, and order requires equal counts. A channel and a band whose meanings
are both known and differ are never paired.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rasterio.io import DatasetReader

from segpipe.contract import Contract
from segpipe.errors import SourceError
from segpipe.overrides import Overrides

Meanings = list[str | None]
"""Meaning of each channel or band; None where it is unknown, or several have the same."""

SAME = {
    "nearinfrared": "nir",
    "infrared": "nir",
    "grey": "gray",
    "panchromatic": "pan",
    "coastalaerosol": "coastal",
    "thermalinfrared": "tir",
    "shortwaveinfrared": "swir",
}
COLOURS = {"red", "green", "blue", "alpha", "nir", "rededge", "coastal", "pan", "swir", "mwir", "lwir", "tir"}
LETTERS = {"r": "red", "g": "green", "b": "blue", "n": "nir", "a": "alpha"}
"""Only as a set: a lone B is a band of that name, and so is the B of L, A, B."""

UNKNOWN = {"undefined", "gray", "palette"}
"""Colour interpretations that GDAL assigns where the file gives none."""

SENTINEL = {"b2": "blue", "b3": "green", "b4": "red"}
"""True of Sentinel-2 and Landsat 8 only, so only used for warnings: for Landsat 7, MODIS and Himawari these differ."""


LISTED = 20
"""Most bands that a message names."""

EXPAND = "it holds palette indices, not intensities: expand it with gdal_translate -expand rgb"


@dataclass(frozen=True, slots=True)
class Band:
    """A band as its file describes it."""

    number: int
    """Counted from 1."""
    description: str | None = None
    colour: str = "undefined"
    """GDAL's colour interpretation."""

    @property
    def label(self) -> str | None:
        """Description, or else the colour; None where the file says neither."""
        return self.description or (None if self.colour in UNKNOWN else self.colour)


@dataclass(frozen=True, slots=True)
class Matched:
    """Bands in the order of the model's channels, counted from 1."""

    bands: list[int]
    notes: tuple[str, ...] = ()
    """How they were matched, unless by equal names or by order."""


def bands_of(dataset: DatasetReader) -> list[Band]:
    """All bands of a file, in its order."""
    described = zip(dataset.descriptions, dataset.colorinterp, strict=True)
    return [Band(number, description, colour.name) for number, (description, colour) in enumerate(described, 1)]


def alpha_bands(bands: Sequence[Band], contract: Contract) -> list[int]:
    """Numbers of the bands that are tagged alpha, unless their name says that they are data."""
    channels = {_fold(name) for name in contract.channel_names or ()}
    alpha = []
    for band, meaning in zip(bands, _meanings([band.description or "" for band in bands]), strict=True):
        named = meaning is not None or (band.description and _fold(band.description) in channels)
        if band.colour == "alpha" and (not named or meaning == "alpha"):
            alpha.append(band.number)
    return alpha


def match_bands(bands: Sequence[Band], contract: Contract, overrides: Overrides) -> Matched:
    """Match the bands of a file to the contract's channels, in the model's order.

    ``--bands`` takes precedence. Alpha bands are left out unless a channel is called alpha, or ``--ignore-alpha`` declares
    them to be data and the others do not match.

    Raises:
        SourceError: names, colours and counts are ambiguous or contradictory; the message has both lists.
    """
    names = contract.channel_names
    if overrides.bands is not None:
        return Matched(_chosen(overrides.bands, len(bands), contract.channel_count))
    alpha = alpha_bands(bands, contract)
    groups = [[band for band in bands if band.number not in alpha]]
    if overrides.ignore_alpha or "alpha" in _meanings(names or ()):
        groups.append([Band(b.number, b.description) if overrides.ignore_alpha and b.number in alpha else b for b in bands])
    for group in groups:
        if (matched := _matched(group, contract)) is not None:
            return matched
    wanted = names or ("unnamed",) * contract.channel_count
    raise SourceError(_mismatch(groups[0], wanted, len(bands)))


def _chosen(chosen: Sequence[int], there: int, count: int) -> list[int]:
    if len(chosen) != count or max(chosen) > there:
        raise SourceError(f"--bands must name {count} of the file's bands, 1 to {there}, got {','.join(map(str, chosen))}")
    return list(chosen)


def _matched(bands: Sequence[Band], contract: Contract) -> Matched | None:
    numbers, names = [band.number for band in bands], contract.channel_names
    if names is None:
        return Matched(numbers) if len(numbers) == contract.channel_count else None
    described = [band.description for band in bands if band.description]
    if len(described) == len(bands) and _plain(described) == _plain(names):  # names of several images occur more than once
        return Matched(numbers)
    return _by_names(described, numbers, names) if len(described) == len(bands) else _by_colours(bands, names)


def _by_names(found: Sequence[str], numbers: Sequence[int], names: Sequence[str]) -> Matched | None:
    """Match bands that all have names: by equal names, else by equal codes (B4 and B04) and colour names as well."""
    equal = (_plain(names), _plain(found))
    for ways in ([equal], [equal, (_codes(names), _codes(found)), (_meanings(names), _meanings(found))]):
        order = _hits(ways)
        if len(set(order) - {None}) == len(names):
            break
    else:
        return None
    chosen = [i for i in order if i is not None]
    listed = ", ".join(found[i] for i in chosen)
    notes = () if len(ways) == 1 else (f"bands called {listed} were taken for the channels {', '.join(names)}",)
    return Matched([numbers[i] for i in chosen], notes)


def _hits(ways: Sequence[tuple[Meanings, Meanings]]) -> list[int | None]:
    """For each channel the one band of the same meaning, by the first of several ways that finds any."""
    hits: list[int | None] = []
    for i in range(len(ways[0][0])):
        found = [[j for j, name in enumerate(bands) if name == channels[i]] for channels, bands in ways if channels[i]]
        first = next((same for same in found if same), [])
        hits.append(first[0] if len(first) == 1 else None)
    return hits


def _by_colours(bands: Sequence[Band], names: Sequence[str]) -> Matched | None:
    """Match bands without names, or with some: by name or colour where both sides have one, else by order."""
    wanted, found = _meanings(names), _band_meanings(bands)
    order = _paired(_hits([(_plain(names), _plain([b.description for b in bands])), (wanted, found)]), wanted, found)
    if order is None:
        return None
    numbers = [bands[i].number for i in order]
    if order == list(range(len(bands))):
        return Matched(numbers, tuple(_doubts(bands, names, found)))
    listed, some = ", ".join(map(str, numbers)), "bands" if len(numbers) > 1 else "band"
    return Matched(numbers, (f"{some} {listed} taken for {', '.join(names)}, as the file's names and colours say",))


def _paired(hits: Sequence[int | None], wanted: Meanings, found: Meanings) -> list[int] | None:
    """Pair channels with the bands of the same meaning, then the rest of both in order.

    None if the rests differ in number, or if this would pair two whose meanings are known.
    """
    channels = [i for i, hit in enumerate(hits) if hit is None]
    bands = [i for i in range(len(found)) if i not in hits]
    if len(set(hits) - {None}) + len(channels) < len(hits) or (channels and len(channels) != len(bands)):
        return None
    left = dict(zip(channels, bands, strict=False))
    if any(wanted[channel] is not None and found[band] is not None for channel, band in left.items()):
        return None
    return [left[i] if hit is None else hit for i, hit in enumerate(hits)]


def _doubts(bands: Sequence[Band], names: Sequence[str], found: Meanings) -> list[str]:
    """Note if codes of Sentinel-2 would pair channels with the bands' colours in another order."""
    usual: Meanings = [SENTINEL.get(code or "") for code in _codes(names)]
    order = _paired(_hits([(usual, found)]), usual, found)
    if order is None or order == list(range(len(bands))):
        return []
    channel = next(i for i, (name, band) in enumerate(zip(usual, found, strict=True)) if name and band and name != band)
    better = ",".join(str(bands[i].number) for i in order)
    return [
        f"bands were taken in their order, and band {bands[channel].number} is tagged {found[channel]}, but "
        f"{names[channel]} is {usual[channel]} to Sentinel-2: if the tags are right, give --bands {better}"
    ]


def _plain(names: Sequence[str | None]) -> Meanings:
    return [name.strip().casefold() if name else None for name in names]


def _band_meanings(bands: Sequence[Band]) -> Meanings:
    """Meanings by name, or by colour where a band has no name."""
    named = _meanings([band.description or "" for band in bands])
    coloured = [None if band.description or band.colour in UNKNOWN else band.colour for band in bands]
    return _once([name or colour for name, colour in zip(named, coloured, strict=True)])


def _meanings(names: Sequence[str]) -> Meanings:
    """Unambiguous meanings of names."""
    folded = [SAME.get(_fold(name), _fold(name)) for name in names]
    letters = LETTERS if {"r", "g", "b"} <= set(folded) else {}
    full = [letters.get(name, name) for name in folded]
    return _once([name if name in COLOURS else None for name in full])


def _once(meanings: Meanings) -> Meanings:
    return [meaning if meanings.count(meaning) == 1 else None for meaning in meanings]


def _codes(names: Sequence[str]) -> Meanings:
    """Codes such as ``b4`` for B4, B04 and "B4, central wavelength 665 nm"; None for all where bands are just numbered."""
    found = [re.match(r"b0*(\d{1,2}a?)(?![^\W_])", name.strip().casefold()) for name in names]
    codes = [f"b{code[1]}" if code else None for code in found]
    return [None] * len(names) if codes == [f"b{i}" for i in range(1, len(names) + 1)] else codes


def _fold(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def _mismatch(found: Sequence[Band], wanted: Sequence[str], bands: int) -> str:
    """The error message; ``bands`` counts all bands of the file, alpha included, which ``--bands`` may name."""
    more = [f"and {len(found) - LISTED} more"] if len(found) > LISTED else []
    listed = ", ".join([*(band.label or "unnamed" for band in found[:LISTED]), *more])
    count = "1 band" if len(found) == 1 else f"{len(found)} bands"
    alpha = f" and {bands - len(found)} of alpha" * (bands > len(found))
    mend = EXPAND if _is_palette(found) and len(wanted) == 3 else _mend(len(found), len(wanted), bands)
    return f"the file's bands must be the model's channels, got {count} ({listed}){alpha} for {', '.join(wanted)}: {mend}"


def _is_palette(found: Sequence[Band]) -> bool:
    return [band.colour for band in found] == ["palette"]


def _mend(found: int, wanted: int, bands: int) -> str:
    if found >= wanted:
        return f"say which with --bands, such as --bands {','.join(str(n) for n in range(wanted, 0, -1))}"
    if bands >= wanted:
        return f"say which with --bands, alpha counts, such as --bands {','.join(str(n + 1) for n in range(wanted))}"
    if found == 1:
        return f"if it is grey and the model is for colours, give it for each with --bands {','.join('1' * wanted)}"
    return f"it has fewer bands than the model has channels: it takes a file with {wanted}"
