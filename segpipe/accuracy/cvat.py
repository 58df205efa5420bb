"""Annotations of CVAT: "CVAT for images 1.1", an XML file of all pictures."""

from collections.abc import Callable, Mapping
from pathlib import Path
from xml.parsers import expat

from segpipe.accuracy.annotated import Annotated, Drawn, Outline, PixelRuns, ellipse, outline, rectangle, refused
from segpipe.errors import InputError

FLAT = ("polyline", "points", "cuboid", "skeleton")
"""Shapes without an area."""

Attributes = Mapping[str, str]


def read_cvat(path: Path, data: bytes) -> list[Annotated]:
    """The pictures of a file.

    Raises:
        InputError: it is not as CVAT writes it, or has entities or a document type, which CVAT never writes.
    """
    reader = _Reader(path)
    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = reader.refuse_doctype
    parser.StartElementHandler = reader.begin
    parser.EndElementHandler = reader.end
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise InputError(f"{path} must be the XML of CVAT, and is not: {error}: export it again") from None
    return reader.pictures


class _Reader:
    """Collects pictures while a file is parsed."""

    def __init__(self, path: Path) -> None:
        self._path, self._depth = path, 0
        self._image: Attributes | None = None
        self._objects: list[tuple[int, Drawn]] = []
        self._problems: list[str] = []
        self.pictures: list[Annotated] = []

    def refuse_doctype(self, *_: object) -> None:
        raise InputError(f"{self._path} must have no document type (<!DOCTYPE), as the XML of CVAT: remove it")

    def begin(self, name: str, attributes: Attributes) -> None:
        if self._depth == 0 and name != "annotations":
            raise InputError(
                f"{self._path} must be the XML of CVAT, with <annotations>, and has <{name[:40]}>: name another"
            )
        if name == "track":
            raise InputError(f"{self._path} has tracks of a video: export it as CVAT for images 1.1")
        self._depth += 1
        if name == "image":
            self._image, self._objects, self._problems = attributes, [], []
        elif self._image is not None and self._depth == 3:
            self._add(name, attributes)

    def _add(self, name: str, attributes: Attributes) -> None:
        assert self._image is not None
        picture = self._image.get("name", "")
        if name in FLAT:
            self._problems.append(f"{picture}: {attributes.get('label', '')} is a {name}, which has no area")
        elif name in AREAS:
            try:
                one = Drawn(attributes["label"], (AREAS[name](attributes),))
                self._objects.append((int(attributes.get("z_order", "0")), one))
            except KeyError as error:
                raise refused(self._path, f"a {name} of {picture}", ValueError(f"it must have {error}")) from None
            except ValueError as error:
                raise refused(self._path, f"a {name} of {picture}", error) from None

    def end(self, name: str) -> None:
        self._depth -= 1
        if name != "image" or self._image is None:
            return
        ordered = tuple(one for _, one in sorted(self._objects, key=lambda pair: pair[0]))  # stable: later over earlier
        try:
            size = int(self._image["height"]), int(self._image["width"])
            picture = self._image["name"]
        except (KeyError, ValueError) as error:
            raise refused(self._path, "a picture must have name, width and height", error) from None
        self.pictures.append(Annotated(self._path, picture, size, ordered, tuple(self._problems)))
        self._image = None


def _polygon(attributes: Attributes) -> Outline:
    return outline([[float(value) for value in point.split(",")] for point in attributes["points"].split(";")])


def _box(attributes: Attributes) -> Outline:
    corners = (float(attributes[key]) for key in ("xtl", "ytl", "xbr", "ybr"))
    return rectangle(*corners, turned=float(attributes.get("rotation", "0")))


def _ellipse(attributes: Attributes) -> Outline:
    x, y, across, along = (float(attributes[key]) for key in ("cx", "cy", "rx", "ry"))
    if float(attributes.get("rotation", "0")):
        raise ValueError("it must not be turned: convert it to a polygon")
    return ellipse(x, y, across, along)


def _mask(attributes: Attributes) -> PixelRuns:
    top, left, height, width = (int(attributes[key]) for key in ("top", "left", "height", "width"))
    counts = [int(count) for count in attributes["rle"].split(",")]
    return PixelRuns.of(counts, (top, left), (height, width), by_column=False)


AREAS: Mapping[str, Callable[[Attributes], Outline | PixelRuns]] = {
    "polygon": _polygon,
    "box": _box,
    "ellipse": _ellipse,
    "mask": _mask,
}
