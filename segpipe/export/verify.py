"""Compare an exported model with torch: scores and labels, before the file gets its name."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.contract import Contract
from segpipe.errors import DisagreementError, ExportError
from segpipe.export.settings import ExportSettings

Scores = NDArray[np.float32]
BATCHES = (1, 2, 3)
"""Batch sizes that are compared; their sum is the number of tiles."""


@dataclass(frozen=True)
class Verification:
    """Results of a comparison on some tiles; differences are relative to torch's largest score."""

    tiles: int
    source: str
    max_difference: float
    mean_difference: float
    equal_labels: float
    """Share of pixels with equal labels."""
    miou: float
    """Mean IoU of the two sets of labels, over the classes that occur in either."""
    finite: bool
    worst: str
    """Where they differ most, as text."""

    def figures(self) -> dict[str, Any]:
        """Values for the contract."""
        return {
            "tiles": self.tiles,
            "source": self.source,
            "batches": list(BATCHES),
            "max_relative_difference": float(f"{self.max_difference:.3g}"),
            "mean_relative_difference": float(f"{self.mean_difference:.3g}"),
            "equal_labels": round(self.equal_labels, 7),
            "miou": round(self.miou, 6),
        }


def labels_of(scores: Scores, contract: Contract) -> NDArray[np.integer[Any]]:
    """Labels that a run would write for scores ``(batch, classes, rows, cols)``; several bands for a multilabel model."""
    if contract.task == "multiclass":
        return np.asarray(scores.argmax(axis=1))
    odds = np.log(contract.threshold / (1 - contract.threshold)) if contract.activation == "sigmoid" else contract.threshold
    return np.asarray(scores > odds, np.int8)


def compare(  # noqa: PLR0913 - two scorers and their common input
    torch_scores: Callable[[Scores], Scores],
    onnx_scores: Callable[[NDArray[Any]], Scores],
    tiles: Sequence[tuple[Scores, NDArray[Any]]],
    contract: Contract,
    source: str,
    *,
    invalid: Sequence[NDArray[np.bool_] | None] = (),
) -> Verification:
    """Score the same tiles with both: torch one by one, ONNX Runtime in batches of 1, 2 and 3.

    Args:
        torch_scores: the reference; takes scaled tiles.
        onnx_scores: the exported model.
        tiles: pairs: scaled ``(channels, rows, cols)``, and as the exported model takes it.
        contract: contract that turns scores into labels.
        source: origin of the tiles, for the record.
        invalid: masks ``(rows, cols)`` of the tiles: labels are not compared there, where none are written, and where equal
            filled pixels may tie two classes.
    """
    wanted = np.concatenate([torch_scores(scaled[None]) for scaled, _ in tiles])
    found = np.concatenate([onnx_scores(batch) for batch in _batches([taken for _, taken in tiles])])
    largest = float(np.abs(wanted).max()) or 1.0
    with np.errstate(invalid="ignore"):  # inf - inf, which is reported as not finite
        difference = np.abs(found.astype(np.float64) - wanted) / largest
    a, b = labels_of(wanted, contract), labels_of(found, contract)
    seen = _seen(a, invalid)
    return Verification(
        tiles=len(tiles),
        source=source,
        max_difference=float(np.nan_to_num(difference.max(), nan=np.inf)),
        mean_difference=float(np.nan_to_num(difference.mean(), nan=np.inf)),
        equal_labels=float((a == b)[seen].mean()),
        miou=_miou(a, b, seen, contract),
        finite=bool(np.isfinite(found).all() and np.isfinite(wanted).all()),
        worst=_worst(difference, wanted, found, (a != b) & seen),
    )


def _batches(tiles: Sequence[NDArray[Any]]) -> Iterator[NDArray[Any]]:
    """Batches of 1, 2, 3, 1, 2, 3 ... tiles; the last may be shorter."""
    start, turn = 0, 0
    while start < len(tiles):
        size = BATCHES[turn % len(BATCHES)]
        yield np.stack(tiles[start : start + size])
        start, turn = start + size, turn + 1


def _seen(labels: NDArray[np.integer[Any]], invalid: Sequence[NDArray[np.bool_] | None]) -> NDArray[np.bool_]:
    """Mask of compared pixels; all pixels if none is valid."""
    seen = np.ones(labels.shape, bool)
    for tile, where in zip(seen, invalid, strict=False):
        if where is not None:
            tile[..., where] = False
    return seen if seen.any() else ~seen


def _miou(a: NDArray[np.integer[Any]], b: NDArray[np.integer[Any]], seen: NDArray[np.bool_], contract: Contract) -> float:
    if contract.task in ("multilabel", "regions"):
        pairs = [((a[:, k] == 1) & seen[:, k], (b[:, k] == 1) & seen[:, k]) for k in range(a.shape[1])]
    else:
        pairs = [((a == k) & seen, (b == k) & seen) for k in range(max(2, contract.scores))]
    overlaps = [(x & y).sum() / union for x, y in pairs if (union := (x | y).sum())]
    return float(np.mean(overlaps)) if overlaps else 1.0


def _worst(difference: NDArray[np.float64], wanted: Scores, found: Scores, unequal: NDArray[np.bool_]) -> str:
    at = np.unravel_index(int(np.nan_to_num(difference, nan=np.inf).argmax()), difference.shape)
    tile, channel, *place = map(int, at)
    where = ", ".join(f"{name} {n}" for name, n in zip(("plane", "row", "column")[-len(place) :], place, strict=True))
    per_tile = ", ".join(f"{share:.3%}" for share in unequal.reshape(len(unequal), -1).mean(axis=1))
    return (
        f"scores differ most in tile {tile} at {where}, class {channel}: "
        f"{wanted[at]:.6g} by torch, {found[at]:.6g} by ONNX Runtime; labels that differ in each tile: {per_tile}"
    )


def check_agreement(agreement: Verification, settings: ExportSettings) -> None:
    """Check that an export agrees with its network.

    Raises:
        DisagreementError: it does not; the message gives the broken rule, its figure, and the place.
    """
    least, largest = settings.least_agreement, settings.largest_difference
    broken = []
    if not agreement.finite:
        broken.append("scores must be finite, got NaN or infinity")
    if agreement.equal_labels < least:
        broken.append(
            f"at least {least:.2%} of labels must be torch's at {settings.precision}, got {agreement.equal_labels:.4%}"
        )
    if largest is not None and agreement.max_difference > largest:
        broken.append(f"scores must differ by {largest:g} of the largest at most, got {agreement.max_difference:.3g}")
    if broken:
        raise DisagreementError(
            f"the export does not agree with its network, so no file was written: {'; '.join(broken)}; {agreement.worst}: "
            f"{'' if settings.verify or settings.calibrate else _ON_NOISE}limits: --min-agreement, --max-difference"
        )


_ON_NOISE = "name real scenes by --verify, since this was noise, on which scores are often close to each other; "


def check_steady(torch_scores: Callable[[Scores], Scores], tiles: Sequence[Scores]) -> None:
    """Check that a network scores a tile reproducibly, and independently of the other tiles in its batch.

    Raises:
        ExportError: dropout or batch statistics are on (training mode); or it takes no batch.
    """
    first = torch_scores(tiles[0][None])
    if not np.isfinite(first).all():
        raise ExportError(
            "the network's scores must be finite, got NaN or infinity on noise: see its weights and its scaling"
        )
    tolerance = 1e-3 * (float(np.abs(first).max()) or 1.0)
    if np.abs(torch_scores(tiles[0][None]) - first).max() > tolerance:
        raise ExportError(
            "the network must give the same scores each time, and does not: dropout is on, so save it in eval()"
        )
    try:
        both = torch_scores(np.stack([tiles[0], 3 * tiles[1] + 1]))
    except Exception as error:  # noqa: BLE001 - a network may raise anything
        raise ExportError(
            "the network must take several tiles at once, and does not run on 2: where it is a program, "
            f"make it with a free batch, dynamic_shapes in torch.export ({type(error).__name__}: {str(error)[:300]})"
        ) from None
    if len(both) != 2 or np.abs(both[:1] - first).max() > tolerance:
        raise ExportError(
            "a tile's scores must not depend on the tiles beside it in a batch, and they do: "
            "batch normalisation is in training mode, so save the network in eval()"
        )
