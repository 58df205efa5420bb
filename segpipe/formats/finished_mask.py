"""Open a mask or a confidence that segpipe wrote, of any format, to read its values window by window."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass

import numpy as np

from segpipe.contract import Contract
from segpipe.formats.case import Case
from segpipe.formats.registry import FORMATS, OpenMask, format_of, open_case
from segpipe.formats.source import Pixels, Source
from segpipe.geometry.layout import Layout
from segpipe.geometry.windows import Window
from segpipe.storage import Store


@dataclass(frozen=True)
class OpenLabels:
    """An open mask."""

    path: str
    shape: tuple[int, ...]
    read: Callable[[Window], Pixels]
    """Stored values of a window, shape ``(bands, *window.shape)``."""


@contextmanager
def open_labels(family: str, output: Store, name: str, contract: Contract) -> Iterator[OpenLabels]:
    """Open the mask ``name`` of a case of the format ``family``; ``contract`` is one of ``as_stored``.

    Raises:
        SourceError, OutputError: it cannot be opened or read.
    """
    path, open_mask = output.path(name), FORMATS[family].open_mask
    with ExitStack() as stack:
        local = stack.enter_context(output.local(name))
        if open_mask is not None:
            mask = stack.enter_context(open_mask(local))
            yield OpenLabels(path, mask.grid.shape, lambda window: _bands(mask, window))
            return
        source = stack.enter_context(closing(open_case(Case(name, str(local), format_of(name)), contract)))
        yield OpenLabels(path, source.grid.shape, lambda window: _voxels(source, window))


def _bands(mask: OpenMask, window: Window) -> Pixels:
    return np.stack([mask.read(window, band) for band in range(mask.bands)])


def _voxels(source: Source, window: Window) -> Pixels:
    return source.read(window)[0]


def as_stored(bands: int, axes: Contract | None = None) -> Contract:
    """A contract that leaves values as the file has them: a slope, as of a confidence, cancels in a range.

    Args:
        bands: bands of the mask.
        axes: axes are in the order and directions of this contract; None: those of the file.
    """
    classes = [{"id": 0, "name": "values"}]
    values = {"version": 1, "channels": bands, "normalize": "minmax", "layout": Layout.NCDHW, "classes": classes}
    turned = {} if axes is None else {"orientation": axes.orientation, "axis_order": axes.axis_order, "layout": axes.layout}
    return Contract.model_validate({**values, "task": "multilabel", "activation": "sigmoid", **turned})
