"""Methods of data classes that are compiled at their first call do what those of the standard library do."""

import dataclasses
from dataclasses import FrozenInstanceError, dataclass, field, replace

import pytest

from segpipe.process import dataclass_methods
from segpipe.process.dataclass_methods import compiled_later

at_once = pytest.mark.skipif(dataclass_methods._create is None, reason="this Python compiles a class's methods at once")


def classes():
    """A class, one with slots that inherits from it, one that can be changed, and one in an order."""

    @dataclass(frozen=True)
    class Box:
        start: tuple[int, ...]
        stop: tuple[int, ...] = (4, 4)
        inner: object = field(default=None, repr=False, compare=False)

    @dataclass(frozen=True, slots=True)
    class Named(Box):
        name: str = "a"

    @dataclass
    class Loose:
        parts: list[object] = field(default_factory=list)

    @dataclass(order=True)
    class Ranked:
        rank: int

    return Box, Named, Loose, Ranked


def made(kinds):
    """Instances, two of which are equal; one holds itself."""
    box, named, loose, ranked = kinds
    circle = loose()
    circle.parts.append(circle)
    boxes = [box((0, 0)), box((0, 0), inner=1), box((1, 2)), named((0, 0)), named((0, 0), name="b")]
    return [*boxes, circle, ranked(1), ranked(2)]


def outcome(do):
    """What a call returns or raises."""
    try:
        return do()
    except Exception as error:  # noqa: BLE001 - the standard library's are the truth
        return type(error), str(error)


def behaviour(kinds):
    found = made(kinds)
    yield [repr(x) for x in found]
    yield [[x == y for y in found if x is not found[5] or y is not x] for x in found]
    yield [outcome(lambda x=x: hash(x)) for x in found]
    yield [outcome(lambda x=x, name=name: setattr(x, name, 1)) for x in found[:5] for name in ("start", "name", "other")]
    yield [outcome(lambda x=x: delattr(x, "start")) for x in found[:5]]
    yield [method.__qualname__ for kind in kinds for method in (kind.__eq__, kind.__repr__)]
    yield replace(found[0], stop=(5, 5)).stop, found[6] < found[7], found[0].__eq__(3)


def test_they_do_what_those_of_the_standard_library_do():
    with compiled_later():
        later = classes()
    assert list(behaviour(later)) == list(behaviour(classes()))


@at_once
def test_only_what_is_called_is_compiled_once(monkeypatch):
    compiled, create = [], dataclass_methods._create
    monkeypatch.setattr(dataclasses, "_create_fn", create)  # which the block restores
    monkeypatch.setattr(
        dataclass_methods, "_create", lambda name, *rest, **more: compiled.append(name) or create(name, *rest, **more)
    )
    with compiled_later():
        box = classes()[0]
    assert set(compiled) == {"__init__", "__lt__", "__le__", "__gt__", "__ge__"}
    compiled.clear()
    for _ in range(2):
        assert box((0,)) == box((0,))
        with pytest.raises(FrozenInstanceError, match="cannot assign to field 'start'"):
            box((0,)).start = 1
    assert compiled == ["__eq__", "__setattr__"]


@at_once
def test_classes_defined_elsewhere_are_left_alone():
    before = dataclasses._create_fn
    with compiled_later():
        assert dataclasses._create_fn is not before
    assert dataclasses._create_fn is before
    with pytest.raises(ZeroDivisionError, match="division by zero"), compiled_later():
        _ = 1 / 0
    assert dataclasses._create_fn is before
