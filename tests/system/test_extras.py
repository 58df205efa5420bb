"""The command that installs an extra, whatever segpipe was installed from."""

import json
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        (None, "pip install 'segpipe[s3]'"),
        ({"url": "file:///srv/segpipe", "dir_info": {}}, "pip install '/srv/segpipe[s3]'"),
        ({"url": "https://a.b/segpipe-1.whl", "archive_info": {}}, "pip install 'segpipe[s3] @ https://a.b/segpipe-1.whl'"),
    ],
)
def test_the_command_follows_the_installation(origin, command, tmp_path):
    """As pip leaves it, seen by a process of its own."""
    info = tmp_path / "segpipe-9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: segpipe\nVersion: 9.9\n")
    if origin:
        (info / "direct_url.json").write_text(json.dumps(origin))
    path = f"import sys; sys.path.insert(0, {str(tmp_path)!r})"
    code = f"{path}; from segpipe.process.extras import install; print(install('s3'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == command


def test_no_message_words_it_itself():
    """A name that is on no index yet is a command that fails, or installs somebody else's package."""
    from pathlib import Path

    import segpipe

    folder = Path(segpipe.__file__).parent
    assert [p for p in folder.rglob("*.py") if "install 'segpipe[" in p.read_text() and p.name != "extras.py"] == []
