import threading
import time

import pytest

from segpipe.pipeline.ahead import ahead


def test_items_come_in_order():
    assert list(ahead(range(1000), 3)) == list(range(1000))


def test_no_more_than_depth_items_wait():
    made = []
    items = ahead((made.append(i) or i for i in range(100)), 3)
    assert next(items) == 0
    time.sleep(0.3)
    assert len(made) <= 1 + 3 + 1  # taken, waiting, and one in hand
    items.close()


def test_an_error_is_raised_where_it_would_have_been():
    def items():
        yield 1
        raise ValueError("broken")

    got = ahead(items(), 3)
    assert next(got) == 1
    with pytest.raises(ValueError, match="broken"):
        next(got)


def test_closing_stops_the_thread_and_closes_the_source():
    closed = threading.Event()

    def items():
        try:
            while True:
                yield 0
        finally:
            closed.set()

    got = ahead(items(), 2)
    next(got)
    got.close()
    assert closed.is_set()
    assert not [t for t in threading.enumerate() if t.name == "segpipe-ahead"]
