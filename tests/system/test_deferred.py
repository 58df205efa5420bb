"""Modules that are loaded when they are first used, and once."""

import subprocess
import sys
import threading
from importlib import import_module

import pytest

from segpipe.process.deferred import defer

CONTENT = """
from deferred_package import part
import counted
counted.loads.append(1)
value = part.value + 1

def late():
    return part.value
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package that notes when it is loaded, deferred; its list of loads."""
    (tmp_path / "deferred_package").mkdir()
    (tmp_path / "deferred_package/__init__.py").write_text(CONTENT)
    (tmp_path / "deferred_package/part.py").write_text("import time\ntime.sleep(0.05)\nvalue = 1\n")
    (tmp_path / "counted.py").write_text("loads = []\n")
    monkeypatch.syspath_prepend(tmp_path)
    loads = import_module("counted").loads
    defer("deferred_package")
    yield loads
    for name in ("deferred_package", "deferred_package.part", "counted"):
        sys.modules.pop(name, None)


def test_a_module_is_loaded_by_its_first_use_and_once(package):
    module = import_module("deferred_package")
    assert (module.__name__, package) == ("deferred_package", [])
    found = []
    threads = [threading.Thread(target=lambda: found.append(module.late())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (found, package, module.value) == ([1] * 8, [1], 2)
    assert sys.modules["deferred_package"] is module
    with pytest.raises(AttributeError, match="module 'deferred_package' has no attribute 'nothing'"):
        _ = module.nothing


def test_a_part_of_it_can_be_imported(package):
    assert import_module("deferred_package.part").value == 1
    assert package == []
    assert import_module("deferred_package").part.value == 1


def test_what_is_not_installed_stays_so(package):
    defer("no_such_package")
    assert "no_such_package" not in sys.modules
    before = sys.modules["subprocess"]
    defer("subprocess")
    assert sys.modules["subprocess"] is before


def test_a_run_loads_nothing_for_buckets_that_it_does_not_read():
    """With torch, they would be most of its start."""
    heavy = "{'botocore', 'torch'} & {*sys.modules}"
    code = f"import sys, segpipe.terminal.progress, segpipe.jobs.executors; sys.exit(' '.join({heavy}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
