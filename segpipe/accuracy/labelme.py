"""Annotations of Labelme: a JSON file beside each picture."""

import base64
import binascii
import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from segpipe.accuracy.annotated import Annotated, Drawn, Outline, PixelRuns, ellipse, outline, rectangle, refused
from segpipe.errors import SourceError
from segpipe.formats.raster.gdal import gdal_errors, gdal_options
from segpipe.storage.invalid import readable

FLAT = ("point", "line", "linestrip", "points")
"""Shapes without an area."""


class _Shape(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    label: str
    points: list[tuple[float, float]]
    shape_type: str = "polygon"
    mask: str | None = None


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    shapes: list[_Shape]
    imagePath: str  # noqa: N815 - the tool's
    imageHeight: int | None = Field(default=None, gt=0)  # noqa: N815
    imageWidth: int | None = Field(default=None, gt=0)  # noqa: N815


def is_labelme(value: Any) -> bool:
    """Whether a JSON value has the keys of such a file."""
    return isinstance(value, dict) and {"shapes", "imagePath"} <= value.keys()


def read_labelme(path: Path, value: Any) -> Annotated:
    """The picture of a file.

    Raises:
        InputError: it is not as Labelme writes it.
    """
    try:
        found = _File.model_validate(value)
    except ValidationError as error:
        raise refused(path, "annotations of Labelme must have their keys", ValueError(readable(error))) from None
    size = None if found.imageHeight is None or found.imageWidth is None else (found.imageHeight, found.imageWidth)
    objects, problems = list[Drawn](), list[str]()
    for shape in found.shapes:
        if shape.shape_type in FLAT:
            problems.append(f"{path.name}: {shape.label} is a {shape.shape_type}, which has no area")
            continue
        try:
            objects.append(Drawn(shape.label, (_area(shape),)))
        except (ValueError, SourceError) as error:
            raise refused(path, f"a shape of {shape.label}", error) from None
    return Annotated(path, found.imagePath, size, tuple(objects), tuple(problems))


def _area(shape: _Shape) -> Outline | PixelRuns:
    if shape.shape_type == "polygon":
        return outline(shape.points)
    kinds = {"rectangle": _rectangle, "circle": _circle}
    if shape.shape_type not in (*kinds, "mask") or len(shape.points) != 2:
        raise ValueError(f"its type must be polygon, rectangle, circle or mask, with its points, got {shape.shape_type}")
    return _mask(shape) if shape.shape_type == "mask" else kinds[shape.shape_type](shape.points)


def _rectangle(points: Sequence[tuple[float, float]]) -> Outline:
    return rectangle(*points[0], *points[1])


def _circle(points: Sequence[tuple[float, float]]) -> Outline:
    """The middle, and a point on the circle."""
    radius = math.dist(*points)
    return ellipse(*points[0], radius, radius)


def _mask(shape: _Shape) -> PixelRuns:
    """A PNG of the box between the two points, both within."""
    (left, top), (right, bottom) = (tuple(map(round, point)) for point in shape.points)
    size = bottom - top + 1, right - left + 1
    try:
        data = base64.b64decode(shape.mask or "", validate=True)
    except binascii.Error:
        raise ValueError("its mask must be text of base 64") from None
    inside = np.concatenate([[False], _pixels(data, size).ravel() > 0])
    changes = np.flatnonzero(inside[1:] != inside[:-1])
    counts = np.diff(np.concatenate([[0], changes, [inside.size - 1]]))
    return PixelRuns.of(counts.tolist(), (top, left), size, by_column=False)


def _pixels(data: bytes, size: tuple[int, int]) -> Any:
    from rasterio.io import MemoryFile

    with ExitStack() as stack:
        stack.enter_context(gdal_options())
        stack.enter_context(gdal_errors(SourceError, "its mask cannot be read"))
        memory = stack.enter_context(MemoryFile(data, ext=".png"))
        with memory.open(driver="PNG") as dataset:
            if dataset.shape != size or dataset.count != 1:
                raise ValueError(
                    f"its mask must have {size[1]} x {size[0]} pixels, and has {dataset.width} x {dataset.height}"
                )
            return dataset.read(1)
