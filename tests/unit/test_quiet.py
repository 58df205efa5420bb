"""What libraries write is kept from the terminal at the level of descriptors; what segpipe says goes through."""

import os
import sys
from contextlib import nullcontext

import pytest

from segpipe.export.quiet import quiet


def write_everywhere() -> None:
    os.write(1, b"from C to 1\n")
    os.write(2, b"from C to 2\n")
    for stream in (sys.stdout, sys.stderr):
        stream.write("from Python\n")
        stream.flush()


@pytest.mark.parametrize("fails", [False, True])
def test_only_what_is_said_reaches_the_terminal(fails, capfd):
    with pytest.raises(ValueError, match="a library's") if fails else nullcontext(), quiet(verbose=False) as say:
        write_everywhere()
        say("one\x1b[2J")
        if fails:
            raise ValueError("a library's")
    write_everywhere()
    out, err = capfd.readouterr()
    assert out == "from C to 1\nfrom Python\n"
    assert err == "one\\x1b[2J\nfrom C to 2\nfrom Python\n"


def test_verbose_keeps_nothing(capfd):
    with quiet(verbose=True) as say:
        write_everywhere()
        say("one")
    out, err = capfd.readouterr()
    assert out.count("from") == 2
    assert err.endswith("one\n")
    assert err.count("from") == 2
