"""Whether the frames of a series are the planes of a regular volume: a pure function of positions and directions.

Every fault has a kind and its figures. Positions are taken along the normal of the planes; SpacingBetweenSlices,
The audit does not use GantryDetectorTilt and InstanceNumber.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.array_types import Float
from segpipe.formats.dicom.series import Frame
from segpipe.geometry.voxel_grid import VoxelGrid, matrix_rows
from segpipe.messages.printable import and_more

OFF_GRID = 0.5
"""Pixels by which planes may lie beside a regular grid at most, anywhere."""

NOTED = 0.05
"""Pixels above which a note says so."""

UNEVEN, UNEVEN_NOTED = 0.1, 0.01
"""Share of the distance between planes by which one may be nearer or further, and above which a note says so."""

STEP_TOLERANCE = 0.2
"""Share by which a distance may differ from a multiple of the usual one and still be that multiple."""

DOUBLED = 0.01
"""Share of the usual distance below which two planes have one position."""

MOST_NAMED = 3
"""Faults of one kind that are named with their figures."""

LPS = np.diag([-1.0, -1.0, 1.0])
"""From DICOM's patient coordinates to x to the right and y to the front."""

REMEDY = "copy the series again, or take out what does not belong to it"


@dataclass(frozen=True, slots=True)
class Fault:
    """A reason why frames form no regular volume."""

    kind: str
    """``no geometry``, ``mixed sizes``, ``mixed spacing``, ``mixed orientations``, ``sheared``, ``doubled``, ``missing``,
    ``gap``, ``jitter``, ``tilt`` or ``shifted``."""
    text: str
    """With figures, and what to do."""


@dataclass(frozen=True, slots=True)
class SeriesAudit:
    """The result of an audit: faults, or else a grid."""

    faults: tuple[Fault, ...]
    order: tuple[int, ...] = ()
    """For each plane, from the lowest along the normal, its frame."""
    grid: VoxelGrid | None = None
    """Axes plane, row, column, as the frames are stored; the affine leads to RAS."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Planes:
    """Frames of one orientation, as numbers."""

    frames: tuple[Frame, ...]
    """Sorted along the normal."""
    order: tuple[int, ...]
    along: Float
    """Position along the normal in mm, ascending."""
    beside: Float
    """Position along rows and columns in mm, ``(frames, 2)``."""
    pixel: float
    """The smaller side of a pixel in mm."""


def audit(frames: Sequence[Frame]) -> SeriesAudit:
    """Check that frames are equal planes at equal distances, one above the other, and give their grid."""
    if faults := tuple(_without_geometry(frames)):
        return SeriesAudit(faults)
    directions, turned = _axes_of(frames)
    spacing, sized = _spacing(frames)
    if faults := (*turned.faults, *sized.faults):
        return SeriesAudit(faults)
    planes = _sorted_planes(frames, directions, min(spacing))
    spaced = _audit_positions(planes)
    notes = (*turned.notes, *sized.notes, *spaced.notes)
    if spaced.faults:
        return SeriesAudit(spaced.faults, notes=notes)
    step, said = _plane_distance(planes)
    if not step:
        return SeriesAudit((Fault("no geometry", said),))
    steps = np.column_stack([directions[2] * step, directions[1] * spacing[0], directions[0] * spacing[1]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = LPS @ steps, LPS @ np.array(planes.frames[0].position)
    grid = VoxelGrid((len(frames), *frames[0].shape), matrix_rows(affine))
    return SeriesAudit((), planes.order, grid, (*notes, said) if said else notes)


@dataclass(frozen=True, slots=True)
class _Findings:
    faults: tuple[Fault, ...] = ()
    notes: tuple[str, ...] = ()


def _without_geometry(frames: Sequence[Frame]) -> Iterator[Fault]:
    absent = [f for f in frames if f.position is None or f.directions is None or f.spacing is None]
    if absent:
        first = absent[0]
        tags = {
            "ImagePositionPatient": first.position,
            "ImageOrientationPatient": first.directions,
            "PixelSpacing": first.spacing,
        }
        named = ", ".join(tag for tag, value in tags.items() if value is None)
        yield Fault(
            "no geometry",
            f"every slice must say where it lies, and {len(absent)} of {len(frames)} have no {named} ({first.path}): "
            "take the series as the scanner wrote it",
        )
    counts = Counter(f.shape for f in frames)
    if len(counts) > 1:
        sizes = ", ".join(f"{n} of {rows} x {columns}" for (rows, columns), n in counts.most_common())
        odd = next(f for f in frames if f.shape == counts.most_common()[-1][0])
        yield Fault("mixed sizes", f"slices must have one size in pixels, and there are {sizes} ({odd.path}): {REMEDY}")


def _axes_of(frames: Sequence[Frame]) -> tuple[Float, _Findings]:
    """Directions of rows, columns and planes, of length 1 and at right angles, ``(3, 3)``; and what is wrong with them."""
    each = np.array([f.directions for f in frames])
    lengths = np.linalg.norm(each, axis=2, keepdims=True)
    if not np.isfinite(each).all() or np.abs(lengths - 1).max() > 0.01:
        odd = int(np.abs(lengths - 1).max(axis=(1, 2)).argmax())
        return np.eye(3), _Findings((_no_direction(frames[odd]),))
    units = each / lengths
    usual = np.median(units, axis=0)
    if np.linalg.norm(usual, axis=1).min() < 0.5:  # of opposite directions: none is usual
        usual = units[0]
    rows, columns = (vector / np.linalg.norm(vector) for vector in usual)
    far = max(frames[0].shape)
    skew = abs(float(rows @ columns))
    if skew * far > OFF_GRID:
        text = f"rows and columns must be at right angles, and are off by {np.degrees(np.arcsin(skew)):.3g} degrees"
        return np.eye(3), _Findings((Fault("sheared", f"{text}: resample the series first"),))
    columns = columns - rows * (rows @ columns)
    columns = columns / np.linalg.norm(columns)
    found = _orientations(frames, units, np.array([rows, columns]), far)
    return np.array([rows, columns, np.cross(rows, columns)]), found


def _no_direction(frame: Frame) -> Fault:
    directions = "\\".join(f"{n:g}" for vector in frame.directions or () for n in vector)
    return Fault(
        "no geometry",
        f"ImageOrientationPatient must be two directions of length 1, got {directions} ({frame.path}): {REMEDY}",
    )


def _orientations(frames: Sequence[Frame], units: Float, usual: Float, far: int) -> _Findings:
    """The distance of the directions of single frames from the usual ones."""
    off = np.linalg.norm(units - usual, axis=2).max(axis=1)
    worst = int(off.argmax())
    pixels, degrees = float(off[worst]) * far, float(np.degrees(2 * np.arcsin(min(1.0, off[worst] / 2))))
    if pixels > OFF_GRID:
        count = int((off * far > OFF_GRID).sum())
        text = f"slices must have one orientation, and {count} of {len(frames)} are turned by up to {degrees:.3g} degrees"
        return _Findings((Fault("mixed orientations", f"{text} ({frames[worst].path}): {REMEDY}"),))
    if pixels > NOTED:
        return _Findings(
            notes=(f"orientations of slices differ by up to {degrees:.2g} degrees, and the usual one is taken",)
        )
    return _Findings()


def _spacing(frames: Sequence[Frame]) -> tuple[tuple[float, float], _Findings]:
    """The usual spacing of rows and columns, and how far that of single frames is from it."""
    each = np.array([f.spacing for f in frames])
    if not np.isfinite(each).all() or each.min() <= 0:
        odd = frames[int(np.nan_to_num(each, nan=-1).min(axis=1).argmin())]
        return (1.0, 1.0), _Findings(
            (Fault("no geometry", f"PixelSpacing must be above 0, got {odd.spacing} ({odd.path})"),)
        )
    usual = np.median(each, axis=0)
    off = (np.abs(each / usual - 1) * np.array(frames[0].shape)).max(axis=1)
    worst = frames[int(off.argmax())]
    taken = float(usual[0]), float(usual[1])
    if off.max() > OFF_GRID:
        assert worst.spacing is not None
        text = (
            f"slices must have one PixelSpacing, and {int((off > OFF_GRID).sum())} of {len(frames)} differ from "
            f"{_by(taken)} mm, as {_by(worst.spacing)} ({worst.path}): {REMEDY}"
        )
        return taken, _Findings((Fault("mixed spacing", text),))
    if off.max() > NOTED:
        return taken, _Findings(notes=(f"PixelSpacing of slices differs, by {off.max():.2g} pixels over a slice",))
    return taken, _Findings()


def _by(sizes: Sequence[float]) -> str:
    return " x ".join(f"{size:.6g}" for size in sizes)


def _sorted_planes(frames: Sequence[Frame], directions: Float, pixel: float) -> _Planes:
    there = np.array([f.position for f in frames]) @ directions.T
    order = np.argsort(there[:, 2], kind="stable")
    kept = tuple(int(n) for n in order)
    return _Planes(tuple(frames[n] for n in kept), kept, there[order, 2], there[order, :2], pixel)


def _audit_positions(planes: _Planes) -> _Findings:
    """Faults of the positions of planes, which are sorted."""
    if len(planes.frames) == 1:
        return _Findings()
    if not np.isfinite(planes.along).all() or not np.isfinite(planes.beside).all():
        return _Findings((Fault("no geometry", f"ImagePositionPatient must be finite numbers: {REMEDY}"),))
    usual = _usual_distance(planes.along)
    twice = np.diff(planes.along) <= DOUBLED * usual
    single = np.concatenate([[True], ~twice])
    along, beside = planes.along[single], planes.beside[single]
    faults = [*_doubled(planes, twice)]
    notes: list[str] = []
    if len(along) > 1:
        steps = _distances(along, usual)
        lean = _sideways(along, beside, planes.pixel)
        faults += [*steps.faults, *lean.faults]
        notes += [*steps.notes, *lean.notes]
    return _Findings(tuple(faults), tuple(notes))


def _usual_distance(along: Float) -> float:
    """The usual distance between planes: the lower median of those that are not 0."""
    steps = np.sort(np.diff(along))
    steps = steps[steps > max(1e-3, DOUBLED * float(np.median(steps)))]
    return float(steps[(len(steps) - 1) // 2]) if len(steps) else 0.0


def _doubled(planes: _Planes, twice: NDArray[np.bool_]) -> Iterator[Fault]:
    if not twice.any():
        return
    at = [int(n) for n in np.flatnonzero(twice)]
    pairs = [(planes.frames[n], planes.frames[n + 1]) for n in at]
    same = sum(a.instance == b.instance for a, b in pairs)
    what = f", of which {same} are copies of one file (one SOPInstanceUID)" if same else ""
    named = ", ".join(f"{planes.along[n]:.4g} mm ({a.path} and {b.path})" for n, (a, b) in zip(at[:1], pairs, strict=False))
    yield Fault(
        "doubled",
        f"each position must have one slice, and {len(at)} of {len(planes.frames)} lie where another does{what}, "
        f"as at {named}: take the copies out; times, echoes and phases must differ in their tags",
    )


def _distances(along: Float, usual: float) -> _Findings:
    """Holes, and uneven distances, of planes with a position each."""
    steps = np.diff(along)
    ratio = steps / usual
    times = np.rint(ratio)
    hole = ratio > 1 + 2 * STEP_TOLERANCE
    missing = hole & (np.abs(ratio - times) <= STEP_TOLERANCE) & (times > 1)
    faults = [*_missing(along, times, missing, usual), *_gaps(along, steps, hole & ~missing, usual)]
    if faults:
        return _Findings(tuple(faults))
    even = along[0] + (along[-1] - along[0]) * np.arange(len(along)) / (len(along) - 1)
    step = (along[-1] - along[0]) / (len(along) - 1)
    off = float(np.abs(along - even).max())
    steps_text = f"{steps.min():.4g} to {steps.max():.4g} mm, {off:.3g} mm beside equal steps of {step:.4g} mm"
    if off > UNEVEN * step or np.abs(ratio - 1).max() > 2 * STEP_TOLERANCE:
        return _Findings(
            (Fault("jitter", f"distances between slices must be equal, and are {steps_text}: resample the series first"),)
        )
    return _Findings(notes=(f"distances between slices are {steps_text}",) if off > UNEVEN_NOTED * step else ())


def _missing(along: Float, times: Float, missing: NDArray[np.bool_], usual: float) -> Iterator[Fault]:
    at = np.flatnonzero(missing)
    if not len(at):
        return
    count = int((times[at] - 1).sum())
    named = ", ".join(f"{int(times[n] - 1)} between {along[n]:.5g} and {along[n + 1]:.5g} mm" for n in at[:MOST_NAMED])
    more = f" and {len(at) - MOST_NAMED} more places" if len(at) > MOST_NAMED else ""
    yield Fault(
        "missing",
        f"{count} slice{'s are' if count > 1 else ' is'} missing at steps of {usual:.4g} mm: {named}{more}: "
        "copy the series again, whole",
    )


def _gaps(along: Float, steps: Float, gap: NDArray[np.bool_], usual: float) -> Iterator[Fault]:
    at = np.flatnonzero(gap)
    if not len(at):
        return
    named = [f"{steps[n]:.4g} mm between {along[n]:.5g} and {along[n + 1]:.5g} mm" for n in at]
    yield Fault(
        "gap",
        f"slices must follow one another at one distance, {usual:.4g} mm, and there are gaps: "
        f"{and_more(named, MOST_NAMED)}: split the series there, or resample it",
    )


def _sideways(along: Float, beside: Float, pixel: float) -> _Findings:
    """Check how far planes shift sideways: all together with a tilt, or single ones."""
    middle = along - along.mean()
    slope: Float = (middle @ (beside - beside.mean(axis=0))) / (middle @ middle)
    extent = float(along[-1] - along[0])
    tilt, shift = float(np.linalg.norm(slope)), float(np.linalg.norm(slope)) * extent
    rest = np.linalg.norm(beside - beside.mean(axis=0) - middle[:, None] * slope, axis=1)
    faults: list[Fault] = []
    if shift > OFF_GRID * pixel:
        faults.append(Fault("tilt", _tilted(tilt, shift, extent, pixel)))
    if float(rest.max()) > OFF_GRID * pixel:
        worst = int(rest.argmax())
        text = f"slices must lie above one another, and the one at {along[worst]:.5g} mm lies {rest[worst]:.3g} mm beside"
        faults.append(Fault("shifted", f"{text} ({rest[worst] / pixel:.2g} pixels): resample the series first"))
    largest = max(shift, float(rest.max()))
    said = f"slices move sideways by {largest:.2g} mm ({largest / pixel:.2g} pixels), and are taken as they are"
    return _Findings(tuple(faults), (said,) if NOTED * pixel < largest and not faults else ())


def _tilted(tilt: float, shift: float, extent: float, pixel: float) -> str:
    return (
        "slices must lie at right angles above one another, and are sheared by "
        f"{np.degrees(np.arctan(tilt)):.3g} degrees, as a tilted gantry does: {shift:.3g} mm ({shift / pixel:.3g} pixels) "
        f"over {extent:.4g} mm, and half a pixel is allowed: resample the series to right angles first, as dcm2niix does"
    )


def _plane_distance(planes: _Planes) -> tuple[float, str]:
    """Distance between planes in mm, and a note; 0 and why, if it is not known."""
    along, frames = planes.along, planes.frames
    if len(frames) > 1:
        return float(along[-1] - along[0]) / (len(frames) - 1), ""
    thickness: Any = frames[0].thickness
    if thickness and np.isfinite(thickness) and thickness > 0:
        return float(thickness), f"there is one slice, and its SliceThickness, {thickness:g} mm, is taken as its depth"
    return 0.0, f"one slice alone must have a SliceThickness, which gives its depth ({frames[0].path}): take a whole series"
