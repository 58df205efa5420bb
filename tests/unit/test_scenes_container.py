"""Archives and metadata of products are not trusted."""

import os
import zipfile
from pathlib import Path

import pytest

from segpipe.errors import SourceError
from segpipe.formats.scenes.container import MOST_BYTES, container_at, holds_product
from segpipe.formats.scenes.document import number, parsed, text_of

BOMB = """<!DOCTYPE lolz [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;&a;">]><x>&b;</x>"""
OUTSIDE = """<?xml version="1.0"?><!DOCTYPE x [<!ENTITY xxe SYSTEM "file:///etc/passwd">]><x>&xxe;</x>"""


def archive(path: Path, *names: str, data: bytes = b"x") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as stream:
        for name in names:
            stream.writestr(name, data)
    return path


@pytest.mark.parametrize("name", ["../evil.jp2", "X.SAFE/../../evil.jp2", "/etc/passwd", "X.SAFE\\evil.jp2"])
def test_names_that_lead_out_of_an_archive(tmp_path, name):
    with pytest.raises(SourceError, match="names in an archive must lie below its root"):
        container_at(str(archive(tmp_path / "a.zip", "X.SAFE/a", name)))


def test_an_archive_with_a_folder_without_one_and_with_two(tmp_path):
    one = container_at(str(archive(tmp_path / "a.zip", "X.SAFE/GRANULE/a", "X.SAFE/b")))
    assert (one.names, one.path("b")) == (("GRANULE/a", "b"), f"/vsizip/{tmp_path}/a.zip/X.SAFE/b")
    assert container_at(str(archive(tmp_path / "b.zip", "GRANULE/a"))).names == ("GRANULE/a",)
    with pytest.raises(SourceError, match=r"an archive must hold one product, got X\.SAFE, Y\.SAFE"):
        container_at(str(archive(tmp_path / "c.zip", "X.SAFE/a", "Y.SAFE/a")))


def test_members_that_are_no_images(tmp_path, monkeypatch):
    bomb = container_at(str(archive(tmp_path / "a.zip", "X.SAFE/a.jp2", data=bytes(3 * 2**20))))
    with pytest.raises(SourceError, match=r"would unpack from [\d,]+ to 3,145,728 bytes, as no image does"):
        bomb.check(["a.jp2"])
    with pytest.raises(SourceError, match=r"a\.xml must be metadata of at most 4,194,304 bytes"):
        container_at(str(archive(tmp_path / "b.zip", "X.SAFE/a.xml", data=bytes(MOST_BYTES + 1)))).read("a.xml")
    with pytest.warns(UserWarning, match="Duplicate name"):
        twice = container_at(str(archive(tmp_path / "c.zip", "X.SAFE/a.jp2", "X.SAFE/a.jp2")))
    with pytest.raises(SourceError, match="is there 2 times"):
        twice.check(["a.jp2"])
    monkeypatch.setattr("segpipe.formats.scenes.container.MOST_FILES", 1)
    for place in (tmp_path, tmp_path / "c.zip"):
        with pytest.raises(SourceError, match="a product must have at most 1 files"):
            container_at(str(place))


def test_a_directory_of_millions_of_names_is_not_read(tmp_path, monkeypatch):
    path = archive(tmp_path / "a.zip", *(f"X.SAFE/{n:0300}" for n in range(30)))
    monkeypatch.setattr("segpipe.formats.scenes.container.MOST_BYTES", 10_000)
    with pytest.raises(SourceError, match="the directory of an archive must have at most 10,000 bytes, got 10,"):
        container_at(str(path))
    monkeypatch.setattr("zipfile.ZIP_FILECOUNT_LIMIT", 3)  # the form of archives of many or large files
    path = archive(tmp_path / "b.zip", *(f"X.SAFE/{n:0300}" for n in range(30)))
    with pytest.raises(SourceError, match="the directory of an archive must have at most 10,000 bytes, got 10,"):
        container_at(str(path))


def test_pipes_are_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.zip")
    assert not holds_product(str(tmp_path / "a.zip"))
    os.mkfifo(tmp_path / "MTD_MSIL2A.xml")
    with pytest.raises(SourceError, match=r"MTD_MSIL2A\.xml must be a regular file"):
        container_at(str(tmp_path)).read("MTD_MSIL2A.xml")


def test_an_encrypted_member_and_a_damaged_archive(tmp_path):
    path = archive(tmp_path / "a.zip", "X.SAFE/a.jp2")
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(SourceError, match=r"a\.jp2 is encrypted: unpack the archive"):
        container_at(str(path)).check(["a.jp2"])
    with pytest.raises(SourceError, match=r"a\.jp2 cannot be read"):
        container_at(str(path)).read("a.jp2")
    path.write_bytes(data[:-30])
    with pytest.raises(SourceError, match="is damaged: its directory of files cannot be read"):
        container_at(str(path))


def test_an_archive_is_recognised_by_its_first_member(tmp_path):
    assert holds_product(str(archive(tmp_path / "a.zip", "X.SAFE/a")))
    assert not holds_product(str(archive(tmp_path / "b.zip", "docs/a")))
    assert not holds_product(str(tmp_path / "missing.zip"))
    (tmp_path / "c.zip").write_bytes(b"PK")
    assert not holds_product(str(tmp_path / "c.zip"))


@pytest.mark.parametrize("text", [BOMB, OUTSIDE, "<x>", "<!DOCTYPE x><x/>", OUTSIDE.replace("1.0", '1.0" encoding="utf-8')])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_xml_with_a_document_type_is_refused_in_any_encoding(text, encoding):
    if encoding == "utf-16":
        text = text.replace("utf-8", "utf-16")
    with pytest.raises(SourceError, match=r"a\.xml must be well-formed XML without a document type"):
        parsed("a.xml", text.encode(encoding))


def test_texts_and_numbers():
    root = parsed("a.xml", b'<a xmlns:n="u"><n:b> 3 </n:b><c/></a>')
    assert (text_of(root, "missing", "b"), text_of(root, "c")) == ("3", None)
    assert number("a.xml", "b", "3") == 3
    for text in ("x", "nan", "inf", None):
        with pytest.raises(SourceError, match=r"a\.xml: b must be a number"):
            number("a.xml", "b", text)
