"""The names of array types are those of one module."""

import re
from pathlib import Path

from segpipe import array_types

PACKAGE = Path(array_types.__file__).parent

ALIAS = re.compile(r"^(?:Floats?|Integers|Ints|Bools) = NDArray\[.*$", re.MULTILINE)


def test_no_other_module_names_these_types_again():
    files = {path.relative_to(PACKAGE).as_posix(): ALIAS.findall(path.read_text()) for path in PACKAGE.rglob("*.py")}
    again = {name: found for name, found in files.items() if found and name != "array_types.py"}
    assert not again
    assert len(files["array_types.py"]) == 3
