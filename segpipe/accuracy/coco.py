"""Annotations in the JSON of COCO, as CVAT, Label Studio and Roboflow export them."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from segpipe.accuracy.annotated import Annotated, Drawn, Outline, PixelRuns, outline, refused
from segpipe.storage.invalid import readable

ROBOFLOW = re.compile(r"(?P<stem>.+)_(?:jpe?g|png|bmp|webp|tiff?)\.rf\.\w+(?P<suffix>\.\w+)", re.IGNORECASE)
"""``photo_jpg.rf.0123abcd.jpg`` was ``photo.jpg``."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class _Runs(_Model):
    counts: str | list[int]
    size: tuple[int, int]
    """Rows and columns."""


class _Image(_Model):
    id: int | str
    file_name: str
    width: int = Field(gt=0)
    height: int = Field(gt=0)
    extra: dict[str, Any] | None = None


class _Category(_Model):
    id: int | str
    name: str


class _Annotation(_Model):
    image_id: int | str
    category_id: int | str
    segmentation: list[list[float]] | _Runs | None = None


class _File(_Model):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


def is_coco(value: Any) -> bool:
    """Whether a JSON value has the keys of such a file."""
    return isinstance(value, dict) and {"images", "annotations", "categories"} <= value.keys()


def read_coco(path: Path, value: Any) -> list[Annotated]:
    """The pictures of a file.

    Raises:
        InputError: it is not as COCO says.
    """
    try:
        found = _File.model_validate(value)
    except ValidationError as error:
        raise refused(path, "annotations of COCO must have their keys", ValueError(readable(error))) from None
    names, own = {one.id: one.name for one in found.categories}, defaultdict[int | str, list[_Annotation]](list)
    for one in found.annotations:
        own[one.image_id].append(one)
    return [_picture(path, image, own[image.id], names) for image in found.images]


def _picture(path: Path, image: _Image, own: Sequence[_Annotation], names: dict[int | str, str]) -> Annotated:
    objects, problems, size = list[Drawn](), list[str](), (image.height, image.width)
    for one in own:
        try:
            label = _label(one, names)
            areas = tuple(_areas(one, size))
        except ValueError as error:
            raise refused(path, f"an object of {image.file_name}", error) from None
        if areas:
            objects.append(Drawn(label, areas))
        else:
            problems.append(f"{image.file_name}: {label} has no segmentation")
    return Annotated(
        path=path,
        name=image.file_name,
        size=size,
        objects=tuple(objects),
        problems=tuple(problems),
        other_name=_before(image),
    )


def _label(one: _Annotation, names: dict[int | str, str]) -> str:
    if one.category_id not in names:
        raise ValueError(f"category {one.category_id} must be one of the categories")
    return names[one.category_id]


def _areas(one: _Annotation, size: tuple[int, int]) -> Iterator[Outline | PixelRuns]:
    if isinstance(one.segmentation, _Runs):
        yield _runs(one.segmentation, size)
        return
    for ring in one.segmentation or []:
        yield outline(list(zip(ring[::2], ring[1::2], strict=True)))


def _runs(found: _Runs, size: tuple[int, int]) -> PixelRuns:
    if found.size != size:
        raise ValueError(f"runs must have the size of the picture, {size[1]} x {size[0]}, and have {found.size[::-1]}")
    counts = uncompressed(found.counts) if isinstance(found.counts, str) else found.counts
    return PixelRuns.of(counts, (0, 0), size, by_column=True)


def uncompressed(text: str) -> list[int]:
    """Lengths of runs from the text in which COCO packs them (``rleFrString`` of its maskApi.c).

    A number has 5 bits per character, the low ones first; from the fourth on it is a difference to the number two before.

    Raises:
        ValueError: it is no such text.
    """
    counts, value, shift = list[int](), 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 50:
            raise ValueError("compressed runs must have characters from 0 to o, and numbers of 50 bits at most")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("compressed runs end within a number")
    return counts


def _before(image: _Image) -> str | None:
    """Name of a picture before Roboflow renamed it."""
    if image.extra and isinstance(image.extra.get("name"), str):
        return str(image.extra["name"])
    found = ROBOFLOW.fullmatch(image.file_name)
    return None if found is None else found["stem"] + found["suffix"]
