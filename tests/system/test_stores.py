"""Where a run leaves its files: nothing outside the output, and nothing that somebody else has put in the way."""

import errno
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from segpipe.errors import OutputError
from segpipe.storage import check_name
from segpipe.storage.files import output_errors
from segpipe.storage.folder import DRAFTS, Folder

NOBODY = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]


@pytest.mark.parametrize("name", ["/etc/x.tif", "../x.tif", "a/../../x.tif", "a//x.tif", "./x.tif", "", "a/", "a\0b"])
def test_a_name_must_stay_below_the_output(name, tmp_path):
    store = Folder(tmp_path / "out")
    with pytest.raises(OutputError, match="must have a name below it"):
        check_name(name)
    for use in (store.draft, store.remove, lambda name: store.write(name, b"x"), lambda name: store.create(name, b"x")):
        with pytest.raises(OutputError, match="must have a name below it"):
            use(name)


@pytest.mark.parametrize("name", ["a.tif", "a/b.tif", "a..b", "...", "a b/ü.tif"])
def test_any_other_name_is_a_name(name, tmp_path):
    Folder(tmp_path).write(name, b"x")
    assert (tmp_path / name).read_bytes() == b"x"


@pytest.mark.parametrize("name", ["2023-06-01T10:30.tif", "q?.tif", "CON.tif.aux.xml", "end.", "a/b|c.tif"])
@pytest.mark.parametrize("code", [errno.ENOENT, errno.EINVAL])
def test_a_name_that_windows_reserves_is_named_where_the_file_system_refuses_it(name, code):
    """As exFAT (ENOENT) and NTFS (EINVAL) refuse them."""
    with (
        pytest.raises(OutputError, match=re.escape(f'allow no file named "{Path(name).name}": rename the input')),
        output_errors(name),
    ):
        raise OSError(code, os.strerror(code))


@pytest.mark.parametrize(
    ("name", "code"), [("a.tif", errno.EINVAL), ("con.sole/b.tif", errno.ENOENT), ("a:b.tif", errno.ENOSPC)]
)
def test_other_errors_say_nothing_of_names(name, code):
    with pytest.raises(OutputError) as caught, output_errors(name):
        raise OSError(code, os.strerror(code))
    assert "named" not in str(caught.value)


def test_a_folder_that_leads_out_of_the_output_is_refused(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "sub").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match=r"files of the output must lie in it, and .*sub is a link to .*elsewhere"):
        Folder(tmp_path / "out").write("sub/a.json", b"x")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_an_output_that_is_a_link_itself_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "real")
    Folder(tmp_path / "out").write("sub/a.json", b"x")
    assert (tmp_path / "real" / "sub" / "a.json").read_bytes() == b"x"


@pytest.mark.parametrize("link", [os.link, os.symlink])
@pytest.mark.parametrize("where", ["a.json", f"{DRAFTS}/.a.json.partial", ".a.json.partial"])
def test_a_link_in_the_way_is_not_written_through(link, where, tmp_path):
    victim = tmp_path / "input.tif"
    victim.write_bytes(b"precious")
    store = Folder(tmp_path / "out")
    (tmp_path / "out" / where).parent.mkdir(parents=True)
    link(victim, tmp_path / "out" / where)
    store.write("a.json", b"x")
    assert victim.read_bytes() == b"precious"
    assert (tmp_path / "out" / "a.json").read_bytes() == b"x"


def test_two_attempts_at_a_file_do_not_share_a_draft(tmp_path):
    """A worker that was taken for lost may still write while its successor does."""
    store = Folder(tmp_path / "out")
    with store.draft_of("a.json") as lost, store.draft_of("a.json") as later:
        lost.write_bytes(b"lost")
        later.write_bytes(b"later")
        assert lost.read_bytes() == b"lost"
    assert (tmp_path / "out" / "a.json").read_bytes() == b"lost"  # whole: the last one to end
    assert [*(tmp_path / "out" / DRAFTS).iterdir()] == []


def test_a_link_in_place_of_the_drafts_is_refused(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").touch()
    (tmp_path / "out" / DRAFTS).symlink_to(tmp_path / "elsewhere")
    store = Folder(tmp_path / "out")
    with pytest.raises(OutputError, match="must be a folder of the user who runs segpipe"):
        store.write("a.json", b"x")
    store.sweep()
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["kept"]


def test_drafts_that_others_may_enter_are_closed(tmp_path):
    """As a copy of the folder may leave them."""
    (tmp_path / DRAFTS).mkdir()
    (tmp_path / DRAFTS).chmod(0o777)
    Folder(tmp_path).write("a.json", b"x")
    assert (tmp_path / DRAFTS).stat().st_mode & 0o777 == 0o700


def test_what_is_not_a_draft_of_a_run_is_not_swept(tmp_path):
    (tmp_path / ".x.partial").write_text("somebody's")
    store = Folder(tmp_path)
    store.draft("a.tif").write_bytes(b"half")
    store.sweep()
    assert [path.name for path in tmp_path.iterdir()] == [".x.partial"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_drafts_in_a_folder_of_another_user_are_refused():
    """In an output that others may write to, too, nobody else holds the drafts."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        out.chmod(0o777)
        other = [
            "setpriv",
            "--reuid",
            "65534",
            "--regid",
            "65534",
            "--clear-groups",
            "mkdir",
            "-m",
            "777",
            str(out / DRAFTS),
        ]
        subprocess.run(other, check=True)
        with pytest.raises(OutputError, match="must be a folder of the user who runs segpipe"):
            Folder(out).write("a.json", b"x")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_cannot_put_a_link_where_a_draft_will_be():
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        out.chmod(0o777)
        draft = Folder(out).draft("b.tif")
        code = f"import os; os.symlink('/etc/passwd', {str(draft)!r})"
        tried = subprocess.run([*NOBODY, sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd="/")
        assert "PermissionError" in tried.stderr


@pytest.fixture
def nobody():
    """This process is nobody's, if it was root's."""
    own = os.getuid()
    if own == 0:
        os.setresuid(65534, 65534, 0)
    yield
    os.setresuid(own, own, own)


def test_an_output_in_a_folder_that_may_not_be_entered_is_refused(tmp_path, request):
    """Nobody can tell whether it is there."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    request.getfixturevalue("nobody")
    with pytest.raises(OutputError, match=r"the output must be writable, and /.* is not: mend its permissions"):
        Folder(closed / "out").check()


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_file_that_cannot_be_looked_at_is_not_taken_for_absent(number, tmp_path, monkeypatch):
    """What is absent may be written: a mask would replace a file of somebody else's while a server does not answer."""
    (tmp_path / "a.tif").write_bytes(b"mine")
    store = Folder(tmp_path)
    assert store.size("a.tif") == 4
    assert store.size("b.tif") is store.size("a.tif/b") is store.size("x" * 300) is None

    def failing(self, **options):
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "stat", failing)
    with pytest.raises(OSError, match=re.escape(os.strerror(number))):
        store.has("a.tif")
