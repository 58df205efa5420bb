"""Whether an output smaller than its input is a coarser grid of all of it, or the middle of it at full resolution."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from segpipe.pipeline.activation import Raw, by_class
from segpipe.pipeline.errors import ModelError
from segpipe.pipeline.noise import loud_tiles, noise_tiles
from segpipe.pipeline.spec import ModelSpec, by

OUT = 0.8
"""Where patches are changed: as a share of the way from the centre of what a crop would show to its edge."""

NEAR = 0.2
"""Half the side of the boxes in which an answer is looked for, as a share of that way."""

CLEARLY = 2.0
"""Times as much change where a crop would show it, above which the output is one."""


def check_not_cropped(spec: ModelSpec, sizes: Sequence[int], raw: Raw) -> None:
    """Change four patches of noise, and see where in the output scores change.

    With `f` the tile over the output, what lies at distance `d` from the centre of the tile is shown at `d / f` from the
    centre by a coarser grid, and at `d` by a crop.

    Args:
        spec: the model.
        sizes: of its output, an integer fraction of the tile.
        raw: the model.

    Raises:
        ModelError: the output is a crop.
    """
    calm = noise_tiles(spec, 1, seed=2)
    changed = calm.copy()
    loud = loud_tiles(spec, 1, seed=3)
    for corner in _corners(sizes, spec.tiling.tile, 1.0):
        where = (slice(None), slice(None), *corner)
        changed[where] = loud[where]
    scores = [by_class(raw(np.repeat(tile, spec.batch, axis=0)), spec)[0] for tile in (calm, changed)]
    change = np.square(np.nan_to_num(scores[1] - scores[0])).sum(axis=0)
    factors = [t / s for t, s in zip(spec.tiling.tile, sizes, strict=True)]
    grid, crop = (_sum_in(change, _corners(sizes, sizes, f)) for f in (factors[0], 1.0))
    if crop > CLEARLY * grid:
        raise ModelError(
            f"{spec.path}: the output must show the whole tile, and it is the middle of it: a change of the tile of "
            f"{by(spec.tiling.tile)} shows unscaled in the output of {by(sizes)}; models that crop are not supported yet: "
            "export it with padded convolutions, so that sizes are kept"
        )


def _corners(sizes: Sequence[int], within: Sequence[int], factor: float) -> list[tuple[slice, ...]]:
    """Four boxes around the centre of an array: at ``OUT`` of half the output over ``factor``."""
    boxes = []
    for signs in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
        box = []
        for sign, size, whole in zip(signs, sizes, within, strict=True):
            centre, half = whole / 2 + sign * OUT * size / 2 / factor, max(1.0, NEAR * size / 2)
            box.append(slice(max(0, round(centre - half)), max(1, round(centre + half))))
        boxes.append(tuple(box))
    return boxes


def _sum_in(change: NDArray[np.float32], boxes: Sequence[tuple[slice, ...]]) -> float:
    """Of change in any of the boxes, each pixel once."""
    mask = np.zeros(change.shape, bool)
    for box in boxes:
        mask[box] = True
    return float(change[mask].sum(dtype=np.float64) / mask.sum())
