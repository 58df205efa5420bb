"""Settings as the words of a command line."""

from collections.abc import Iterator
from typing import Any

from segpipe.settings import Settings


def command_of(settings: Settings) -> list[str]:
    """Words of the ``segpipe run`` command that does the same, with the settings that are not defaults.

    >>> command_of(Settings(input=("a.tif",), model="m.onnx", tile=(64,), confidence=True))
    ['segpipe', 'run', '--input', 'a.tif', '--model', 'm.onnx', '--tile', '64', '--confidence']
    """
    chosen = settings.model_dump(exclude_defaults=True)
    return ["segpipe", "run", *(word for key, value in chosen.items() for word in _words(key, value))]


def _words(key: str, value: Any) -> Iterator[str]:
    flag = f"--{key.replace('_', '-')}"
    if key in ("input", "model"):
        for one in value if isinstance(value, tuple) else (value,):
            yield from (flag, str(one))
    elif isinstance(value, bool):
        yield flag if value else f"--no-{key.replace('_', '-')}"
    else:
        yield from (flag, ",".join(map(_word, value)) if isinstance(value, tuple) else str(value))


def _word(value: Any) -> str:
    """One value of a flag as text; a pattern of ``--channels`` has a name."""
    return "=".join(value) if isinstance(value, tuple) else str(value)
