"""The command itself: signals are answered before anything heavy is imported."""

from segpipe.process.signals import answer


def start() -> None:
    """Run the command line."""
    answer()
    from segpipe.cli import main

    main()


if __name__ == "__main__":
    start()
