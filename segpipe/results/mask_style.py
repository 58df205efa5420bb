"""How masks look: colours, names and tags by the contract's classes."""

import numpy as np

from segpipe import __version__
from segpipe.contract import Contract, SegmentationClass
from segpipe.formats.style import PALE, Color, Segment, Style, palette, parse_color
from segpipe.pipeline.decision import CONFIDENCE_NODATA, CONFIDENCE_TOP, Decision
from segpipe.results.run import Run


def class_colors(contract: Contract) -> dict[int, Color]:
    """Colour of each class id: the contract's own, or one from the palette; a background is pale."""
    return {c.id: _color(contract, position, c) for position, c in enumerate(contract.mask_classes)}


def _color(contract: Contract, position: int, one: SegmentationClass) -> Color:
    """The contract's colour, else a pale one for a background, else one of the palette."""
    if one.color:
        return parse_color(one.color)
    return PALE if _is_background(contract, one) else palette(position)


def _is_background(contract: Contract, one: SegmentationClass) -> bool:
    return one.name.strip(" _").casefold() == "background" or (contract.task in ("binary", "regions") and one.id == 0)


def mask_style(decision: Decision, run: Run) -> Style:
    """Colour table and names for a mask of one band; band names for independent classes."""
    contract = run.model.contract
    tags = {"SEGPIPE": __version__, "MODEL_SHA256": run.model.sha256}
    if decision.bands > 1:
        bands = [c.name for c in contract.mask_classes]
        return Style(str(decision.dtype), decision.nodata, bands, tags=tags, segments=segments(contract))
    names, colors = legend(contract)
    return Style(
        str(decision.dtype),
        decision.nodata,
        ["class"],
        colors={**colors, decision.nodata: (0, 0, 0, 0)} if decision.dtype == np.uint8 else None,
        names=names,
        legend=colors,
        tags=tags | {f"CLASS_{value}": name for value, name in names.items()},
        segments=segments(contract),
    )


def segments(contract: Contract) -> list[Segment]:
    """The classes of a mask other than a background, each with its band and value."""
    colors, several = class_colors(contract), contract.task == "multilabel"
    return [
        Segment(one.name, 1 if several else one.id, band if several else 0, colors[one.id], one.snomed_codes)
        for band, one in enumerate(contract.mask_classes)
        if several or not _is_background(contract, one)
    ]


def legend(contract: Contract) -> tuple[dict[int, str], dict[int, Color]]:
    """Name and colour of each value of a mask of one band."""
    colors = class_colors(contract)
    if contract.task == "multilabel":
        # one independent class: its pixels are 1 where it is present, whatever its id
        (only,) = contract.mask_classes
        return {0: f"not {only.name}", 1: only.name}, {0: PALE, 1: colors[only.id]}
    return {c.id: c.name for c in contract.mask_classes}, colors


def instance_style(decision: Decision, run: Run) -> Style:
    """Style of component numbers as in ``lesions.csv``, 0 where there is none."""
    bands = [c.name for c in decision.contract.mask_classes] if decision.bands > 1 else ["component"]
    return Style("uint16", 0, bands, tags={"SEGPIPE": __version__, "MODEL_SHA256": run.model.sha256})


def confidence_style(decision: Decision) -> Style:
    """Style of confidence: 0 to 254 stands for probability 0 to 1."""
    bands = [c.name for c in decision.contract.mask_classes] if decision.bands > 1 else ["confidence"]
    scale = 1 / CONFIDENCE_TOP
    return Style("uint8", CONFIDENCE_NODATA, bands, tags={"SEGPIPE": __version__, "SCALE": str(scale)}, scale=scale)
