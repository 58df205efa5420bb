"""Which bands of a file are the channels of a model."""

from collections.abc import Sequence

from segpipe.pipeline.contract import Contract
from segpipe.pipeline.errors import SourceError


def match_bands(
    descriptions: Sequence[str | None], alpha: Sequence[int], contract: Contract, bands: Sequence[int] | None
) -> list[int]:
    """Which bands of a file, 1-based, are the contract's channels, in the model's order.

    ``--bands`` beats names; names beat order; order needs equal counts, alpha bands left out.

    Raises:
        SourceError: neither names nor counts agree; both lists are in the message.
    """
    count, names = contract.channel_count, contract.channel_names
    if bands is not None:
        if len(bands) != count or max(bands) > len(descriptions):
            raise SourceError(
                f"--bands must name {count} of the file's bands, 1 to {len(descriptions)}, got {','.join(map(str, bands))}"
            )
        return list(bands)
    colours = [i for i in range(1, len(descriptions) + 1) if i not in alpha]
    found = [descriptions[i - 1] for i in colours]
    if names and all(found):
        return _match_names([str(name) for name in found], colours, names)
    if len(colours) == count:
        return colours
    raise SourceError(_mismatch(found, names or ("unnamed",) * count))


def _match_names(found: Sequence[str], colours: Sequence[int], names: Sequence[str]) -> list[int]:
    folded = [name.strip().casefold() for name in found]
    wanted = [name.strip().casefold() for name in names]
    if any(folded.count(name) != 1 for name in wanted):
        raise SourceError(_mismatch(found, names))
    return [colours[folded.index(name)] for name in wanted]


def _mismatch(found: Sequence[str | None], wanted: Sequence[str]) -> str:
    listed = ", ".join(name or "unnamed" for name in found)
    count = "1 band" if len(found) == 1 else f"{len(found)} bands"
    example = ",".join(str(n) for n in range(len(wanted), 0, -1))
    enough = (
        f"say which with --bands, such as --bands {example}"
        if len(found) >= len(wanted)
        else f"no choice of --bands can give {len(wanted)}"
    )
    return f"the file's bands must be the model's channels, got {count} ({listed}) for {', '.join(wanted)}: {enough}"
