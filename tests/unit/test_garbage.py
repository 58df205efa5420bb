"""No search for garbage while modules load; what is loaded stays out of later searches."""

import gc

import pytest

from segpipe.process.garbage import loading


@pytest.fixture(autouse=True)
def _thawed():
    yield
    gc.unfreeze()
    gc.enable()


def test_nothing_is_searched_while_modules_load():
    kept = gc.get_freeze_count()
    with loading():
        assert not gc.isenabled()
        held = [[] for _ in range(1000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() >= kept + len(held)


def test_a_search_that_was_off_stays_off_also_after_an_error():
    gc.disable()
    with pytest.raises(ZeroDivisionError, match="division by zero"), loading():
        _ = 1 / 0
    assert not gc.isenabled()
