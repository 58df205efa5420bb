"""Calls that are given up are asked to end until they do; a signal may come while their thread starts."""

import threading

import pytest

from segpipe.process import native
from segpipe.process.native import NativeCall, TooLongError, left_behind

LONG = 60.0
"""Seconds that no test waits."""


class Endless:
    """A call that goes on until it is asked to end, for the given time."""

    def __init__(self, requests=1):
        self.left, self.is_asked, self.has_begun = requests, threading.Event(), threading.Event()

    def run(self, opened):
        opened(self)
        self.has_begun.set()
        self.is_asked.wait(LONG)

    def stop(self):
        self.left -= 1
        if not self.left:
            self.is_asked.set()


@pytest.fixture(autouse=True)
def _nothing_is_left():
    yield
    assert not left_behind()


def joined(call):
    call._thread.join(LONG)


def test_a_result_and_an_error():
    call = NativeCall(lambda opened: 3, name="three")
    assert call.result(LONG, patience=LONG) == 3
    joined(call)
    call = NativeCall(lambda opened: 1 / 0, name="none")
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        call.result(None, patience=LONG)
    joined(call)


@pytest.mark.parametrize("requests", [1, 3])
def test_a_call_that_takes_too_long_is_asked_to_end_until_it_does(requests, monkeypatch):
    monkeypatch.setattr(native, "ASKED", 0.01)
    endless = Endless(requests)
    call = NativeCall(endless.run, name="endless")
    with pytest.raises(TooLongError):
        call.result(0.01, patience=LONG)
    assert endless.left == 0
    joined(call)


def test_what_is_opened_after_the_first_request_is_asked_too(monkeypatch):
    monkeypatch.setattr(native, "ASKED", 0.01)
    first, second = Endless(), Endless()

    def one_after_the_other(opened):
        first.run(opened)
        second.run(opened)

    call = NativeCall(one_after_the_other, name="two")
    with pytest.raises(TooLongError):
        call.result(0.01, patience=LONG)
    assert second.is_asked.is_set()
    joined(call)


def test_a_call_that_does_not_end_is_left_behind():
    endless = Endless(requests=0)
    call = NativeCall(endless.run, name="endless")
    with pytest.raises(TooLongError):
        call.result(0.01, patience=0.01)
    assert left_behind()
    endless.is_asked.set()
    joined(call)


def interrupt_start(monkeypatch, before, after):
    """An interruption while ``Thread.start`` waits for the new thread, or before there is one."""
    start = native._Thread.start

    def interrupted(thread):
        before(thread)
        start(thread)
        after()
        raise KeyboardInterrupt

    monkeypatch.setattr(native._Thread, "start", interrupted)


def test_an_interruption_while_the_thread_starts_ends_the_call(monkeypatch):
    endless = Endless()
    interrupt_start(monkeypatch, lambda thread: None, lambda: endless.has_begun.wait(LONG))
    call = NativeCall(endless.run, name="endless")
    with pytest.raises(KeyboardInterrupt):
        call.result(None, patience=LONG)
    assert endless.is_asked.is_set()
    joined(call)


def test_a_call_that_was_interrupted_before_it_began_does_not_begin(monkeypatch):
    begun, may_begin = [], threading.Event()

    def hold(thread):
        run = thread.run
        thread.run = lambda: may_begin.wait(LONG) and run()

    interrupt_start(monkeypatch, hold, lambda: None)
    call = NativeCall(lambda opened: begun.append(1), name="late")
    with pytest.raises(KeyboardInterrupt):
        call.result(None, patience=LONG)
    may_begin.set()
    joined(call)
    assert not begun


def test_a_signal_that_comes_just_before_a_wait_is_answered(monkeypatch):
    """A handler that runs between two steps of Python does so only if there is a next step."""
    waits, endless = [], Endless()
    call = NativeCall(endless.run, name="endless")
    wait = call._ended.wait

    def noted(seconds=None):
        waits.append(seconds)
        if len(waits) == 3:
            raise KeyboardInterrupt
        return wait(0.01 if seconds else 0)

    monkeypatch.setattr(call._ended, "wait", noted)
    with pytest.raises(KeyboardInterrupt):
        call.result(None, patience=LONG)
    assert max(waits[:3]) <= native.LOOK
    joined(call)
