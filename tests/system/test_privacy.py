"""What every command keeps to itself: it looks up no name, connects to loopback alone, and writes where it was told to."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from networks import Network

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace shows the system calls")

CHANGING = (
    *("creat", "mkdir", "mkdirat", "rename", "renameat", "renameat2", "link", "linkat", "symlink", "symlinkat", "unlink"),
    *("unlinkat", "mknod", "mknodat", "truncate", "chmod", "fchmodat", "chown", "fchownat", "utimensat", "setxattr"),
)
QUICK = ("-f", "--seccomp-bpf")
"""Stops a process at the calls that are shown alone, not at all of them."""
CALLS = ",".join(["connect", "sendto", "openat", "open", *CHANGING])
CHANGES = re.compile(rf"^\d+ +({'|'.join(CHANGING)})\((.*)|^\d+ +(open(?:at)?)\((.*(?:O_WRONLY|O_RDWR|O_CREAT|O_TRUNC).*)")
NAMED = re.compile(r'(?:(?:AT_FDCWD|\d+)<([^>]*)>, )?"([^"]*)"')
"""A path, behind the folder that it is relative to, which ``strace -y`` shows."""
NOT_FILES = ("/dev/", "/proc/", "/sys/")
ALLOWED = ("out", "tmp", ".cache/segpipe")
"""Below the home and working folder of a command: ``--output``, ``TMPDIR``, and segpipe's own cache."""

COMMANDS = {
    "run": "run -i {home}/in -m {examples}/crops.onnx -o {home}/out --workers 2",
    "serial": "run -i {home}/in -m {examples}/crops.onnx -o {home}/out --executor serial --profile --confidence",
    "dry": "run -i {home}/in -m {examples}/crops.onnx -o {home}/out --dry-run",
    "inspect-model": "inspect {examples}/crops.onnx",
    "inspect-raster": "inspect {home}/in/morava.tif --model {examples}/crops.onnx",
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
    shutil.copytree(EXAMPLES / "scenes", home / "in")
    Network(3).conv(3, 3, 1).save(home / "bare.onnx", None, classes=3)
    (home / "c.toml").write_text(CONTRACT)
    words = COMMANDS[request.param].format(examples=EXAMPLES, home=home).split()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "ORT_", "CI", "GITHUB"))}
    environment |= {"HOME": str(home), "TMPDIR": str(home / "tmp"), "PYTHONDONTWRITEBYTECODE": "1"}
    environment["OMP_NUM_THREADS"] = "1"  # threads of torch would spin beside other tests
    log = tmp_path / "calls"
    before = listing(home)
    trace = ["strace", *QUICK, "-qq", "-y", "-s", "4096", "-e", f"trace={CALLS}", "-o", str(log)]
    command = [*trace, sys.executable, "-m", "segpipe.cli", *words]
    ended = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=250, check=False)
    assert ended.returncode in (0, 1, 2), ended.stderr
    assert "Traceback" not in ended.stderr
    assert listing(home) == before
    return home, log.read_text(errors="replace").splitlines()


def test_nothing_is_sent_or_written_elsewhere(traced):
    home, calls = traced
    reached = {address for call in calls for address in re.findall(r'(?:inet_addr\(|AF_INET6, &sin6_addr, )"([^"]*)"', call)}
    assert reached <= {"127.0.0.1", "::1", "0.0.0.0"}, reached
    asked = [call for call in calls if re.search(r"sin6?_port=htons\(53\)", call)]
    assert asked == []
    changed = [path for call in calls for path in paths(call, home)]
    assert [path for path in changed if not path.startswith((*(str(home / name) for name in ALLOWED), *NOT_FILES))] == []
    assert not (home / ".cache" / "Microsoft").exists()


def paths(call, folder):
    """Files that a system call creates, changes or takes away; of one that has failed, none."""
    found = CHANGES.match(call)
    if not found or re.search(r"= -1 E\w+", call):
        return []
    name, rest = found[1] or found[3], found[2] or found[4]
    named = [os.path.normpath(Path(beside or folder, path)) for beside, path in NAMED.findall(rest)]
    return named[-1:] if name.startswith(("link", "symlink")) else named[:2]


def listing(home):
    """All that lies where nothing may be written: what it is, when it was changed, and what a file says."""
    found = {}
    for path in (home, *home.rglob("*")):
        if path == home or not str(path).startswith(tuple(str(home / name) for name in ALLOWED)):
            stat = path.lstat()
            content = path.read_bytes() if path.is_file() else b""
            found[str(path)] = (stat.st_mode, stat.st_size, path != home and stat.st_mtime_ns, content)
    return found


def test_writing_is_seen(tmp_path):
    """The premise: a file that is written, by whatever path, is found."""
    script = "import os; os.mkdir('d'); os.chdir('d'); open('a', 'w').close(); os.symlink('/x', 'b'); os.rename('a', 'c')"
    log = tmp_path / "calls"
    trace = ["strace", *QUICK, "-qq", "-y", "-e", f"trace={CALLS}", "-o", str(log)]
    subprocess.run([*trace, sys.executable, "-B", "-c", script], cwd=tmp_path, check=True)
    changed = {path for call in log.read_text().splitlines() for path in paths(call, tmp_path / "d")}
    assert {str(tmp_path / "d" / name) for name in "abc"} <= changed
