"""What modules keep for the next opening is freed if they were imported, and nothing is imported for it."""

import sys
from types import SimpleNamespace

import pytest

from segpipe.formats.process_state import release_of, released_after


def test_state_is_freed_at_the_end_and_after_an_error(monkeypatch):
    calls = []
    monkeypatch.setitem(sys.modules, "held", SimpleNamespace(release=lambda: calls.append("held")))
    release_of("held", "never_imported")()
    assert calls == ["held"]
    with released_after("held")():
        assert calls == ["held"]
    assert calls == ["held", "held"]
    with pytest.raises(ZeroDivisionError, match="zero"), released_after("held")():
        _ = 1 / 0
    assert calls == ["held", "held", "held"]
    assert "never_imported" not in sys.modules
