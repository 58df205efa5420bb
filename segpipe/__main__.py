"""The ``segpipe`` command; signals are handled before anything heavy is imported."""

from segpipe.process.garbage import leave_at_exit, loading
from segpipe.process.signals import answer


def start() -> None:
    """Run the command line."""
    answer()
    leave_at_exit()
    with loading():
        from segpipe.cli import main

    main(prog_name="segpipe")  # also as python -m segpipe


if __name__ == "__main__":
    start()
