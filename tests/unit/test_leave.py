"""The end of a command's process: exit code, what is registered for it, last lines; no library is taken apart."""

import signal
import subprocess
import sys

import pytest

BLOCK = """
import atexit, ctypes, sys, threading
from segpipe.process.leave import leaving
from segpipe.process.native import NativeCall

library = ctypes.CDLL(None)
library.__cxa_atexit(library.abort, None, None)  # what libraries do when they are taken apart
{before}
with leaving():
    {block}
"""

TAKEN_APART = -signal.SIGABRT
"""Exit code where Python ends as it does without ``leaving``."""


def ended(block, before=""):
    program = BLOCK.format(before=before, block=block)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout.split("\n")[:-1], done.stderr


@pytest.mark.parametrize(("words", "code"), [("3", 3), ("0", 0), ("", 0)])
def test_the_exit_code_and_the_last_lines(words, code):
    assert ended(f"print('last'); sys.exit({words})") == (code, ["last"], "")


def test_what_is_registered_for_the_end_runs_and_threads_are_waited_for():
    thread = "threading.Thread(target=lambda: (threading.main_thread().join(), print('thread'))).start()"
    assert ended(f"atexit.register(print, 'end'); {thread}; sys.exit(1)") == (1, ["thread", "end"], "")


def test_what_was_registered_before_runs_too():
    before = "atexit.register(print, 'earlier', flush=True)"
    assert ended("atexit.register(print, 'own'); sys.exit(1)", before) == (TAKEN_APART, ["own", "earlier"], "")


def test_a_call_that_goes_on_is_not_waited_for():
    call = "NativeCall(lambda opened: threading.Event().wait(), name='endless')._thread.start()"
    assert ended(f"{call}; sys.exit(2)", "atexit.register(print, 'earlier')") == (2, [], "")


@pytest.mark.parametrize("raised", ["ValueError('wrong')", "SystemExit('wrong')"])
def test_other_errors_end_as_python_ends_them(raised):
    code, said, error = ended(f"raise {raised}")
    assert (code, said) == (TAKEN_APART, [])
    assert error.endswith("wrong\n")
