"""Each module of the package has a test file of its name, or is imported or named by its path in the test of another."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parents[1]
PACKAGE = TESTS.parent / "segpipe"

DOTTED = re.compile(r"segpipe(?:\.\w+)+")

MOMENT = re.compile(r"(?:segpipe\.)?([a-z_]+(?:\.\w+)+):(\w+)(?::\d+)?")
"""A function at whose call a test stops or kills a run: ``jobs.join:join``, or ``jobs.work:_write:2`` at the second call."""


def modules() -> dict[str, set[str]]:
    """Names of all modules, with the names of files that would be their tests."""
    paths = [path for path in PACKAGE.rglob("*.py") if not path.stem.startswith("__")]
    return {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): {
            f"test_{path.stem}.py",
            f"test_{path.parent.name}_{path.stem}.py",
        }
        for path in paths
    }


def named(text: str) -> Iterator[str]:
    """What a test imports, and the dotted names in its strings, as where it replaces something for a while."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from DOTTED.findall(node.value)


def test_each_module_has_a_test():
    files = {path.name: path.read_text() for path in TESTS.rglob("test_*.py")}
    words = {word for text in files.values() for word in named(text)}
    seen = {".".join(word.split(".")[:length]) for word in words for length in range(2, 6)}
    untested = [name for name, own in modules().items() if name not in seen and own.isdisjoint(files)]
    assert not untested, f"write test_<module>.py for {', '.join(untested)}"


def test_names_are_found_in_imports_and_strings():
    text = "import segpipe.a.b\nfrom segpipe.c import d\npatch('segpipe.e.f.G', 1)\nx = 'no segpipe'\n"
    assert {"segpipe.a.b", "segpipe.c", "segpipe.c.d", "segpipe.e.f.G"} == set(named(text))
    assert set(named("from . import x\n")) == set()


def moments() -> Iterator[tuple[str, str, str]]:
    """File, module and function of each moment that a test names."""
    for path in TESTS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and (found := MOMENT.fullmatch(node.value)):
                yield path.name, found[1], found[2]


def test_functions_at_which_tests_stop_a_run_exist():
    gone = []
    for test, module, function in moments():
        file = PACKAGE / (module.replace(".", "/") + ".py")
        if not file.exists() or f"def {function}(" not in file.read_text():
            gone.append(f"{test}: {module}:{function}")
    assert not gone
    assert ("test_signals.py", "jobs.conclude", "conclude") in set(moments())
