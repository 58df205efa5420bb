"""Members of tar archives: those that the standard library finds, and none that would lead out or surprise GDAL."""

import io
import tarfile
from pathlib import Path

import pytest

from segpipe.errors import SourceError
from segpipe.formats.scenes.container import MOST_BYTES, container_at
from segpipe.formats.scenes.tar import first_member, members

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def archive(path: Path, *names: str, form: str = "ustar", size: int = 700, **more) -> Path:
    with tarfile.open(path, "w", format=FORMATS[form]) as stream:
        for k, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = size + k, 1.5
            for key, value in more.items():
                setattr(info, key, value)
            stream.addfile(info, io.BytesIO(bytes([k]) * (size + k)))
    return path


SHORT, DEEP, LONG = ("LC08_MTL.txt", "b/c.TIF"), ("x" * 60 + "/" + "y" * 70, "a"), ("a" * 200 + ".TIF",)


@pytest.mark.parametrize(
    ("form", "names"),
    [*((form, SHORT) for form in FORMATS), ("ustar", DEEP), ("gnu", DEEP), ("gnu", LONG)],
)
def test_members_are_those_of_the_standard_library(form, names, tmp_path):
    path = archive(tmp_path / "a.tar", *names, form=form)
    with tarfile.open(path) as stream:
        wanted = {info.name: (info.offset_data, info.size) for info in stream if info.isfile()}
    assert {name: (one.offset, one.size) for name, one in members(str(path), 99).items()} == wanted
    assert first_member(str(path)) == names[0]
    found = container_at(str(path))
    assert found.read(names[-1]) == bytes([len(names) - 1]) * (700 + len(names) - 1)
    assert found.path(names[0]) == f"/vsitar/{path}/{names[0]}"


def test_folders_are_passed_over(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as stream:
        info = tarfile.TarInfo("b/")
        info.type = tarfile.DIRTYPE
        stream.addfile(info)
        stream.addfile(tarfile.TarInfo("b/empty"))
    assert list(members(str(tmp_path / "a.tar"), 9)) == ["b/empty"]


@pytest.mark.parametrize(
    ("names", "more", "message"),
    [
        (("../a",), {}, "names in an archive must lie below its root, got '../a'"),
        (("/etc/a",), {}, "names in an archive must lie below its root"),
        (("a\\b",), {}, "names in an archive must lie below its root"),
        (("a", "a"), {}, "names in an archive must differ, and a is there twice"),
        (
            ("a",),
            {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd", "size": 0},
            "members must be files and folders, and a is",
        ),
        (("a",), {"type": tarfile.CHRTYPE, "size": 0}, "members must be files and folders"),
        ((*"abcde",), {}, "a product must have at most 4 files"),
        (("é" * 120,), {"form": "pax"}, "names of members must lie in their headers, and one is apart: unpack it"),
    ],
)
def test_members_that_are_refused(names, more, message, tmp_path):
    with pytest.raises(SourceError, match=message):
        members(str(archive(tmp_path / "a.tar", *names, **more)), 4)


def test_damage_is_told(tmp_path):
    data = archive(tmp_path / "a.tar", "a", "b").read_bytes()
    for name, changed, message in (
        ("cut", data[:900], "is damaged: it ends within a"),
        ("flipped", data[:1600] + b"?" + data[1601:], "a header of a member is not right"),
        ("packed", b"\x1f\x8b" + data[2:], "is damaged, or no tar archive without compression"),
        ("empty", b"", "is damaged, or no tar archive"),
    ):
        path = tmp_path / f"{name}.tar"
        path.write_bytes(changed)
        with pytest.raises(SourceError, match=message):
            members(str(path), 9)
    assert first_member(str(tmp_path / "packed.tar")) is None
    assert first_member(str(tmp_path)) is None


def test_metadata_are_of_bounded_size(tmp_path):
    path = archive(tmp_path / "a.tar", "a", size=MOST_BYTES + 9)
    with pytest.raises(SourceError, match=r"a must be metadata of at most 4,194,304 bytes"):
        container_at(str(path)).read("a")
