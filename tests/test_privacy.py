"""What every command keeps to itself: it looks up no name, connects to loopback alone, and writes where it was told to."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from networks import Network

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace shows the system calls")

CALLS = (
    "connect,sendto,openat,open,creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat"
)
CHANGES = re.compile(
    r"^\d+ +(?:mkdir|rename|link|symlink|unlink|creat)\w*\((.*)|^\d+ +open(?:at)?\((.*(?:O_WRONLY|O_RDWR|O_CREAT).*)"
)
NOT_FILES = ("/dev/", "/proc/", "/sys/")

COMMANDS = {
    "run": "run -i {examples}/scenes -m {examples}/crops.onnx -o {home}/out --workers 2",
    "serial": "run -i {examples}/scenes -m {examples}/crops.onnx -o {home}/out --executor serial --profile --confidence",
    "dry": "run -i {examples}/scenes -m {examples}/crops.onnx -o {home}/out --dry-run",
    "inspect-model": "inspect {examples}/crops.onnx",
    "inspect-raster": "inspect {examples}/scenes/morava.tif --model {examples}/crops.onnx",
    "status": "status {home}/out",
    "attach": "export attach {home}/bare.onnx --contract {home}/c.toml -o {home}/out/m.onnx",
    "export": "export {examples}/crops.safetensors --arch unet --classes {examples}/classes.toml -o {home}/out/e.onnx",
    "tune": "tune {examples}/crops.onnx --seconds 5 --tile 128 --overlap 0 --batch 1",
}


CONTRACT = """
version = 1
channels = 3
normalize = "none"
tile = [64, 64]
activation = "softmax"
classes = [{id = 0, name = "a"}, {id = 1, name = "b"}, {id = 2, name = "c"}]
"""


SLOW = ("export", "tune")


@pytest.fixture(params=[pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in COMMANDS])
def traced(request, tmp_path):
    """The system calls of a command that touch the network or change files, and what it may change."""
    home = tmp_path / "home"
    (home / "out").mkdir(parents=True)
    (home / "tmp").mkdir()
    Network(3).conv(3, 3, 1).save(home / "bare.onnx", None, classes=3)
    (home / "c.toml").write_text(CONTRACT)
    words = COMMANDS[request.param].format(examples=EXAMPLES, home=home).split()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "ORT_", "CI", "GITHUB"))}
    environment |= {"HOME": str(home), "TMPDIR": str(home / "tmp"), "PYTHONDONTWRITEBYTECODE": "1"}
    log = tmp_path / "calls"
    trace = ["strace", "-f", "-qq", "-s", "4096", "-e", f"trace={CALLS}", "-o", str(log)]
    command = [*trace, sys.executable, "-m", "segpipe.cli", *words]
    ended = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=250, check=False)
    assert ended.returncode in (0, 1, 2), ended.stderr
    assert "Traceback" not in ended.stderr
    return home, log.read_text(errors="replace").splitlines()


def test_nothing_is_sent_or_written_elsewhere(traced):
    home, calls = traced
    reached = {address for call in calls for address in re.findall(r'(?:inet_addr\(|AF_INET6, &sin6_addr, )"([^"]*)"', call)}
    assert reached <= {"127.0.0.1", "::1", "0.0.0.0"}, reached
    asked = [call for call in calls if re.search(r"sin6?_port=htons\(53\)", call)]
    assert asked == []
    changed = [path for call in calls for path in paths(call)]
    allowed = (str(home / "out"), str(home / "tmp"), str(home / ".cache" / "segpipe"), *NOT_FILES)
    assert [path for path in changed if not path.startswith(allowed)] == []
    assert not (home / ".cache" / "Microsoft").exists()


def paths(call):
    """Files that a system call creates, changes or takes away; of one that has failed, none."""
    found = CHANGES.match(call)
    if not found or re.search(r"= -1 E\w+", call):
        return []
    return [path for path in re.findall(r'"([^"]*)"', found[1] or found[2]) if path.startswith("/")]
