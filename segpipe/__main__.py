"""The ``segpipe`` command; signals are handled before anything heavy is imported."""

from segpipe.process.garbage import loading
from segpipe.process.leave import leaving
from segpipe.process.signals import handle_signals


def start() -> None:
    """Run the command line."""
    with leaving():
        handle_signals()
        with loading():
            from segpipe.cli import main

        main(prog_name="segpipe")  # also as python -m segpipe


if __name__ == "__main__":
    start()
