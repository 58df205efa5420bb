"""What gives access to a URL stands in nothing that is written, and does not tell one night's object from another's."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from networks import pixelwise
from scenes import Silent
from web_server import serving

from segpipe.errors import InputError, SourceError
from segpipe.formats.case import Case
from segpipe.formats.identity import identities
from segpipe.jobs.launch import carry_out
from segpipe.jobs.prepare import prepare
from segpipe.jobs.status import read_status
from segpipe.messages.console import echo
from segpipe.messages.url_secrets import cleaned, is_redacted, without_secrets
from segpipe.results.parts import cut_key
from segpipe.settings import load_settings
from segpipe.terminal.chosen import settings_lines
from segpipe.terminal.journal import Journal

SIGNED = {
    "SAS": "sv=2022-11-02&st=2026-11-01&se=2026-12-01&sr=b&sp=r&spr=https&sig=SECRET{}%2Babc%3D",
    "AWS": "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=SECRET{}%2Fs3&X-Amz-Expires=60&X-Amz-Signature=SECRET{}",
    "AWS2": "AWSAccessKeyId=SECRET{}&Signature=SECRET{}%3D&Expires=1700000000",
    "Google": "X-Goog-Algorithm=a&X-Goog-Credential=SECRET{}&X-Goog-Signature=SECRET{}",
    "CloudFront": "Policy=SECRET{}&Signature=SECRET{}&Key-Pair-Id=SECRET{}",
    "OSS": "OSSAccessKeyId=SECRET{}&Expires=1&Signature=SECRET{}",
    "token": "access_token=SECRET{}",
    "key": "apikey=SECRET{}",
}


@pytest.mark.parametrize("kind", SIGNED)
def test_one_object_has_one_name_whatever_gives_access_to_it(kind):
    names = {without_secrets(f"https://h/a.tif?{SIGNED[kind].replace('{}', token)}") for token in ("1", "2")}
    assert names == {"https://h/a.tif?..."}


def test_secrets_in_pieces_of_urls_are_cut_from_words_of_libraries():
    text = "GET /a.tif?X-Amz-Signature=SECRET HTTP/1.1"
    assert without_secrets(text, pieces=True) == "GET /a.tif?X-Amz-Signature=... HTTP/1.1"
    assert without_secrets("noise-sig=2,b=3/sig=1.tif", pieces=True) == "noise-sig=2,b=3/sig=1.tif"


def test_two_objects_keep_two_names():
    first, second = (without_secrets(f"https://h/get?id={n}&sig=SECRET") for n in (1, 2))
    assert first != second
    assert first == without_secrets("https://h/get?sig=other&id=1")
    assert first == f"https://h/get?...{hashlib.sha256(b'id=1').hexdigest()[:12]}"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("https://me:SECRET@h:80/a.tif: HTTP 403", "https://...@h:80/a.tif: HTTP 403"),
        ("see 'https://h/a.tif?sig=SECRET', (http://h/?sig=SECRET).", "see 'https://h/a.tif?...', (http://h/?...)."),
        ("/vsicurl/https://h/a.tif?sig=SECRET", "/vsicurl/https://h/a.tif?..."),
        ("/vsicurl?max_retry=2&url=https%3A%2F%2Fh%2Fa.tif%3Fsig%3DSECRET", "/vsicurl/https://h/a.tif?..."),
        ("/vsizip//vsicurl/https://h/a.zip?sig=SECRET", "/vsizip//vsicurl/https://h/a.zip?..."),
        ("s3://bucket/what?.tif", "s3://bucket/what?.tif"),
        ("scenes/a=b?.tif", "scenes/a=b?.tif"),
        ("tile = 64, https://h/a.tif", "tile = 64, https://h/a.tif"),
    ],
)
def test_secrets_are_cut_from_texts(text, left):
    assert without_secrets(text) == left
    assert without_secrets(left) == left
    assert is_redacted(left) == ("..." in left and "://" in left)
    assert cleaned({text: [text, (text, 1)]}) == {left: [left, [left, 1]]}
    assert str(SourceError(text)) == left
    assert "SECRET" not in repr(Case("a", text))


@pytest.fixture
def site(raster, tmp_path):
    """URL of a folder with scenes, a broken one, and a VRT."""
    raster("site/a.tif", np.full((3, 40, 40), 9, np.uint8))
    with rasterio.open(tmp_path / "site" / "a.tif", "r+") as dataset:
        dataset.update_tags(SATELLITE="from https://h/a.tif?sig=SECRET")
    (tmp_path / "site" / "broken.tif").write_bytes((tmp_path / "site" / "a.tif").read_bytes()[:500])
    pixelwise(tmp_path / "m.onnx")
    with serving(tmp_path / "site") as url:
        yield url


def everything(folder: Path) -> str:
    return "\n".join(f"{path}\n{path.read_bytes().decode('latin-1')}" for path in folder.rglob("*") if path.is_file())


def test_nothing_that_is_written_holds_a_secret_and_the_next_night_finds_what_was_done(site, segpipe, tmp_path):
    host, out = site.removeprefix("http://"), tmp_path / "out"

    def run(token: str):
        asked = [f"http://me:SECRET{token}@{host}/{name}.tif?sv=1&sig=SECRET{token}" for name in ("a", "broken", "gone")]
        flags = ["--model", tmp_path / "m.onnx", "--executor", "serial", "--device", "cpu", "--retries", "0", "-v"]
        flags += ["-o", out, "--log-file", tmp_path / "log" / "l", "--profile", "--style", "qgis"]
        inputs = [part for url in asked for part in ("-i", url)]
        return segpipe(
            "run", *inputs, *flags, "-o", out, "--log-file", tmp_path / "log" / "l", "--profile", "--style", "qgis"
        )

    for token, done in (("1", "1 done, 0 done before, 2 failed"), ("2", "0 done, 1 done before, 2 failed")):
        ended = run(token)
        assert done in ended.stdout, ended
        assert "SECRET" not in ended.stdout + ended.stderr
        assert f"http://...@{host}/a.tif?..." in ended.stderr
        assert "SECRET" not in everything(out) + everything(tmp_path / "log")
    record = json.loads((out / "a.json").read_text())
    assert record["input"]["path"] == f"http://...@{host}/a.tif?..."
    assert record["input"]["files"][0].keys() == {"path", "size", "modified"}
    with rasterio.open(out / "a.tif") as mask:
        assert mask.tags()["SATELLITE"] == "from https://h/a.tif?..."
    status = read_status(str(out))
    assert (status.done, [failure["case"] for failure in status.failed]) == (1, ["broken", "gone"])


@pytest.fixture
def run(tmp_path):
    """Names of the cases that a run did."""

    def carried(*inputs: str, **more: object) -> list[str]:
        flags = {"input": inputs, "model": tmp_path / "m.onnx", "output": tmp_path / "out", "executor": "serial"}
        summary = carry_out(prepare(load_settings(None, flags | {"device": "cpu", "retries": 0} | more)), Silent())
        assert summary.failed == []
        return summary.done

    return carried


def test_another_object_of_the_same_server_is_another_case(site, run):
    assert run(f"{site}/a.tif?id=1&sig=SECRET1") == ["a"]
    assert run(f"{site}/a.tif?sig=SECRET2&id=1") == []
    assert run(f"{site}/a.tif?id=2&sig=SECRET2") == ["a"]


def test_parts_go_on_with_another_token(site, tmp_path):
    """The key of a cut knows the object, not the token."""
    keys = []
    for token in ("1", "2"):
        flags = {"input": (f"{site}/a.tif?sig=SECRET{token}",), "model": tmp_path / "m.onnx", "output": tmp_path / "out"}
        flags |= {"parts": 2, "tile": (32, 32), "overlap": (0, 0), "device": "cpu", "executor": "serial"}
        prepared = prepare(load_settings(None, flags))
        (cut,) = prepared.plan.cuts
        files = identities(cut.case.case.path, cut.case.files)
        assert "SECRET" not in str(files)
        assert "size" in files[0]
        keys.append(cut_key(cut.case.case, prepared.run, files, cut.case.shape))
    assert keys[0] == keys[1]


def test_a_vrt_over_signed_urls_is_done_once(site, run, tmp_path):
    name = f"/vsicurl/{site}/a.tif?sv=1&amp;sig=SECRET"
    source = f"<SimpleSource><SourceFilename>{name}</SourceFilename><SourceBand>{{}}</SourceBand></SimpleSource>"
    bands = "".join(f'<VRTRasterBand dataType="Byte" band="{n}">{source.format(n)}</VRTRasterBand>' for n in (1, 2, 3))
    (tmp_path / "v.vrt").write_text(f'<VRTDataset rasterXSize="40" rasterYSize="40">{bands}</VRTDataset>')
    assert run(str(tmp_path / "v.vrt"), allow_remote_sources=True) == ["v"]
    assert run(str(tmp_path / "v.vrt"), allow_remote_sources=True) == []
    listed = json.loads((tmp_path / "out" / "v.json").read_text())["input"]["files"]
    assert f"{site}/a.tif?..." in [file["path"] for file in listed]
    assert "SECRET" not in everything(tmp_path / "out")
    (tmp_path / "site" / "a.tif").touch()
    (tmp_path / "site" / "a.tif").write_bytes((tmp_path / "site" / "a.tif").read_bytes() + b"\0")
    assert run(str(tmp_path / "v.vrt"), allow_remote_sources=True) == ["v"]


def test_settings_and_journal_hold_none(site, tmp_path, capsys):
    flags = {"input": (f"{site}/a.tif?sig=SECRET",), "model": tmp_path / "m.onnx", "output": tmp_path / "out"}
    prepared = prepare(load_settings(None, flags | {"device": "cpu"}))
    for line in (*settings_lines(prepared), *settings_lines(prepared, everything=True)):
        echo(line)
    assert "SECRET" not in capsys.readouterr().out
    with Journal(tmp_path / "l", Silent()) as journal:
        journal.note("https://h/a?sig=SECRET \x9b2J\u202e")
    text = (tmp_path / "l").read_text()
    assert text.removesuffix("\n").isprintable()
    assert json.loads(text)["message"] == "https://h/a?... \x9b2J\u202e"


@given(
    st.text("abs3:/?=&.-_, %{}", max_size=30), st.sampled_from(["sig=", "token=", "password=", "&signature=", "api_key="])
)
def test_names_of_files_and_of_objects_are_no_secrets(rest, key):
    for name in (f"/data/{key}{rest}", f"s3://bucket/{key}{rest}", f"noise-{key}2,b=3{rest}"):
        if "vsicurl" not in name:
            assert cleaned(name) == name


def test_folders_called_as_parameters_are_done_once(raster, tmp_path):
    """In parts, with a case's own name of the kind: what is written is read back as it was meant."""
    raster("in/sig=0.5/token=1/a.tif", np.ones((3, 90, 60), np.uint8))
    pixelwise(tmp_path / "m.onnx")
    fixed = {"input": (str(tmp_path / "in" / "sig=0.5"),), "model": tmp_path / "m.onnx", "output": tmp_path / "out"}
    fixed |= {"executor": "serial", "device": "cpu", "crs": "EPSG:32633"}
    first = carry_out(prepare(load_settings(None, fixed | {"parts": 2})), Silent())
    assert first.done == ["token=1/a"]
    assert "token=1/a," in (tmp_path / "out" / "areas.csv").read_text()
    assert carry_out(prepare(load_settings(None, fixed)), Silent()).skipped == ["token=1/a"]
    assert read_status(str(tmp_path / "out")).missing == []


@pytest.mark.parametrize("query", ["st=2026-05-01&sr=32633", "author=miller", "expires=1&policy=a", "se=a"])
def test_what_means_a_token_beside_a_signature_alone_names_an_object(query):
    first, second = (without_secrets(f"https://h/export.tif?{query}{end}") for end in ("1", "2"))
    assert first != second
    assert without_secrets(f"https://h/a.tif?id=1&{query}&sig=1") != without_secrets(f"https://h/a.tif?id=2&{query}&sig=1")


def test_a_url_whose_token_was_cut_is_not_run(tmp_path):
    pixelwise(tmp_path / "m.onnx")
    flags = {"input": ("https://127.0.0.1/a.tif?...",), "model": tmp_path / "m.onnx", "output": tmp_path / "out"}
    with pytest.raises(InputError, match="give it with tonight's"):
        prepare(load_settings(None, flags | {"device": "cpu"}))


def test_a_password_with_a_quote_is_cut():
    assert without_secrets("https://me:p'w@host/a.tif is damaged") == "https://...@host/a.tif is damaged"
